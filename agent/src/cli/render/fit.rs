//! Painted text in so many columns.

use super::paint;

/// The text, cut where it is longer than so many columns. Colours take none, and what is cut off ends them.
pub(super) fn fit(text: &str, columns: usize) -> String {
    let mut shown = String::with_capacity(text.len());
    let (mut count, mut painted) = (0, false);
    let mut rest = text;
    let mut cut_at = None;
    while let Some(letter) = rest.chars().next() {
        let length = paint::colour(rest).unwrap_or(0);
        if length > 0 {
            painted = !rest[..length].ends_with("[0m");
            shown.push_str(&rest[..length]);
            rest = &rest[length..];
            continue;
        }
        count += 1;
        if count == columns {
            cut_at = Some((shown.len(), painted));
        }
        if count > columns {
            let (at, painted) = cut_at.unwrap_or((0, false));
            shown.truncate(at);
            shown.push_str(if painted { "…\x1b[0m" } else { "…" });
            return shown;
        }
        shown.push(letter);
        rest = &rest[letter.len_utf8()..];
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn text_is_cut_by_what_shows() {
        assert_eq!(fit("abcdef", 6), "abcdef");
        assert_eq!(fit("abcdef", 5), "abcd…");
        assert_eq!(fit("\x1b[31mabc\x1b[0mdef", 6), "\x1b[31mabc\x1b[0mdef");
        assert_eq!(fit("\x1b[31mabcdef\x1b[0m", 4), "\x1b[31mabc…\x1b[0m");
        assert_eq!(fit("\x1b[31mab\x1b[0mcdef", 4), "\x1b[31mab\x1b[0mc…");
        assert_eq!(fit("関所の帳簿", 3), "関所…");
    }
}
