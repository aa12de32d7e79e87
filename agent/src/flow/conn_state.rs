//! What TCP flags seen on both sides say about a connection: Zeek's `conn_state` letters, and the flags as text.

/// TCP flag bits as on the wire.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Opens.
    pub const SYN: u8 = 2;
    /// Aborts.
    pub const RST: u8 = 4;
    /// Acknowledges.
    pub const ACK: u8 = 16;
}

/// Zeek's letters for a connection whose sides showed these flags, `[forward, reply]`.
///
/// `first` are the flags of the first packet: they tell a SYN-ACK whose SYN was not seen from one that was.
pub fn conn_state(flags: [u8; 2], first: u8) -> &'static str {
    let has = |side: usize, bit: u8| flags[side] & bit != 0;
    let opened = has(0, flag::SYN);
    let accepted = has(1, flag::SYN) && has(1, flag::ACK);
    let (reset_0, reset_1) = (has(0, flag::RST), has(1, flag::RST));
    let (fin_0, fin_1) = (has(0, flag::FIN), has(1, flag::FIN));
    match (opened, accepted) {
        _ if !opened && accepted => match (reset_1, fin_1) {
            (true, _) => "RSTRH",
            (false, true) => "SHR",
            (false, false) => "OTH",
        },
        (false, _) => "OTH",
        // A SYN-ACK came first: its SYN passed before we watched.
        (true, false) if first & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK => "OTH",
        (true, false) => match () {
            () if reset_1 => "REJ",
            () if reset_0 => "RSTOS0",
            () if fin_0 => "SH",
            () => "S0",
        },
        (true, true) => match (reset_0, reset_1, fin_0, fin_1) {
            // Both said FIN: an RST after that only clears away what is left.
            (_, _, true, true) => "SF",
            (true, _, _, _) => "RSTO",
            (_, true, _, _) => "RSTR",
            (_, _, true, false) => "S2",
            (_, _, false, true) => "S3",
            (_, _, false, false) => "S1",
        },
    }
}

/// Where a connection stands, for a person.
pub(super) fn state_name(flags: [u8; 2]) -> &'static str {
    let [forward, reply] = flags;
    let both = forward & reply;
    match () {
        () if (forward | reply) & flag::RST != 0 || both & flag::FIN != 0 => "closed",
        () if (forward | reply) & flag::FIN != 0 => "closing",
        () if both & flag::ACK != 0 => "established",
        () if reply & flag::SYN != 0 => "syn_received",
        () if forward & flag::SYN != 0 => "syn_sent",
        () => "half_seen",
    }
}

/// Flags as letters in the order FSRPAUEC.
pub fn letters(flags: u8) -> String {
    "FSRPAUEC".chars().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, letter)| letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: u8 = flag::FIN;
    const S: u8 = flag::SYN;
    const R: u8 = flag::RST;
    const A: u8 = flag::ACK;

    /// The table of Zeek's documentation, one row per state.
    #[test]
    fn zeek_table() {
        let rows = [
            ([S, 0], S, "S0"),
            ([S | A, S | A], S, "S1"),
            ([S | A | F, S | A | F], S, "SF"),
            ([S, R | A], S, "REJ"),
            ([S | A | F, S | A], S, "S2"),
            ([S | A, S | A | F], S, "S3"),
            ([S | A | R, S | A], S, "RSTO"),
            ([S | R, S | A], S, "RSTO"),
            ([S | A, S | A | R], S, "RSTR"),
            ([S | R, 0], S, "RSTOS0"),
            ([R, S | A], S | A, "OTH"),
            ([0, S | A | R], S | A, "RSTRH"),
            ([S | F, 0], S, "SH"),
            ([0, S | A | F], S | A, "SHR"),
            ([A, A], A, "OTH"),
            ([A, R], A, "OTH"),
            ([S | A | F | R, S | A | F], S, "SF"),
        ];
        for (flags, first, expected) in rows {
            assert_eq!(conn_state(flags, first), expected, "{} {}", letters(flags[0]), letters(flags[1]));
        }
    }

    #[test]
    fn letters_in_order() {
        assert_eq!(letters(0xff), "FSRPAUEC");
        assert_eq!(letters(F | S | A), "FSA");
        assert_eq!(letters(0), "");
    }
}
