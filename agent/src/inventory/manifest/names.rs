//! What the API server takes as a name, a label and a port name (apimachinery's `validation` package). Each check
//! returns what is wrong as a clause.

/// `Err` says what a proper value looks like.
pub(in crate::inventory) type Check = Result<(), &'static str>;

fn alphanumeric_ends(text: &[u8], inner: impl Fn(u8) -> bool, ends: impl Fn(u8) -> bool) -> bool {
    match text {
        [] => false,
        [only] => ends(*only),
        [first, middle @ .., last] => ends(*first) && ends(*last) && middle.iter().all(|b| inner(*b)),
    }
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    alphanumeric_ends(text.as_bytes(), |b| lower(b) || b == b'-', lower)
}

/// Names of namespaces.
pub(in crate::inventory) fn dns_label(name: &str) -> Check {
    if name.len() <= 63 && is_label(name) {
        return Ok(());
    }
    Err("must be a DNS label: at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit")
}

/// Names of most objects.
pub(in crate::inventory) fn dns_subdomain(name: &str) -> Check {
    if name.len() <= 253 && name.split('.').all(is_label) {
        return Ok(());
    }
    Err("must be a DNS name: at most 253 of a-z, 0-9, - and ., beginning and ending with a letter or digit")
}

fn is_qualified(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.len() <= 63 && alphanumeric_ends(text.as_bytes(), inner, |b| b.is_ascii_alphanumeric())
}

/// Keys of labels and annotations: `[prefix/]name`.
pub(in crate::inventory) fn label_key(key: &str) -> Check {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if is_qualified(name) && prefix.is_none_or(|prefix| dns_subdomain(prefix).is_ok()) {
        return Ok(());
    }
    Err("is no label key: [DNS name/] and at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit")
}

/// Values of labels.
pub(in crate::inventory) fn label_value(value: &str) -> Check {
    if value.is_empty() || is_qualified(value) {
        return Ok(());
    }
    Err("is no label value: at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit")
}

/// Names of container and Service ports (IANA service names).
pub(in crate::inventory) fn port_name(name: &str) -> Check {
    let bytes = name.as_bytes();
    let shape = bytes.len() <= 15 && alphanumeric_ends(bytes, |b| lower(b) || b == b'-', lower);
    if shape && bytes.iter().any(u8::is_ascii_lowercase) && !name.contains("--") {
        return Ok(());
    }
    Err("is no port name: at most 15 of a-z, 0-9 and single -, at least one letter")
}
