//! How a build describes its boundary types to builds that come after it.

/// A boundary type as a running build knows it, for builds that come after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    /// Its name.
    pub name: &'static str,
    /// Bytes of a value.
    pub size: usize,
    /// What it is made of, in order.
    pub fields: &'static [Field],
}

/// A field of a boundary [`Type`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its type as written: a number, an array of numbers, or another boundary type.
    pub kind: &'static str,
    /// Where it begins.
    pub offset: usize,
}

/// FNV-1a over the names, types and offsets of `types`.
pub(super) const fn hash(types: &[Type]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut t = 0;
    while t < types.len() {
        hash = fnv(hash, types[t].name);
        let mut f = 0;
        while f < types[t].fields.len() {
            let field = &types[t].fields[f];
            hash = fnv(fnv(hash, field.name), field.kind);
            hash = (hash ^ field.offset as u64).wrapping_mul(0x100_0000_01b3);
            f += 1;
        }
        t += 1;
    }
    hash
}

const fn fnv(mut hash: u64, text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x100_0000_01b3);
        i += 1;
    }
    hash
}
