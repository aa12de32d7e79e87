//! Times as records write them: RFC 3339, UTC, nanoseconds, ending in Z.

use jiff::SignedDuration;
use jiff::fmt::temporal::DateTimePrinter;
use prost_types::Timestamp;

const NANOSECONDS: u64 = 1_000_000_000;

/// A time from nanoseconds since 1970, UTC.
pub fn from_nanoseconds(ns: u64) -> Timestamp {
    Timestamp { seconds: (ns / NANOSECONDS).cast_signed(), nanos: i32::try_from(ns % NANOSECONDS).unwrap_or_default() }
}

/// Nanoseconds since 1970, UTC; 0 for what lies before.
pub fn to_nanoseconds(time: &Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or_default();
    seconds.saturating_mul(NANOSECONDS).saturating_add(u64::try_from(time.nanos).unwrap_or_default())
}

/// Always nine digits behind the point, so that times sort as text. A time outside of the years that RFC 3339 knows is the first or
/// the last that it can write.
pub fn rfc3339(time: &Timestamp) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(9));
    let seconds = time.seconds.clamp(jiff::Timestamp::MIN.as_second() + 1, jiff::Timestamp::MAX.as_second() - 1);
    let whole = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    PRINTER.timestamp_to_string(&whole.saturating_add(SignedDuration::from_nanos(time.nanos.into())).unwrap_or(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_nine_digits_and_leap_days() {
        let written = |seconds, nanos| rfc3339(&Timestamp { seconds, nanos });
        assert_eq!(written(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(written(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(written(1_795_262_400, 123_000_000), "2026-11-21T12:00:00.123000000Z");
        assert_eq!(written(-1, 5), "1969-12-31T23:59:59.000000005Z");
    }

    #[test]
    fn agrees_with_the_protobuf_library_on_every_day_of_eight_centuries() {
        for day in 0..292_000_i64 {
            let time = Timestamp { seconds: day * 86_400 + 3_661, nanos: 0 };
            assert_eq!(rfc3339(&time).replace(".000000000Z", "Z"), time.to_string());
        }
    }

    #[test]
    fn nanoseconds_go_both_ways() {
        let ns = 1_795_262_400_123_456_789;
        assert_eq!(to_nanoseconds(&from_nanoseconds(ns)), ns);
        assert_eq!(to_nanoseconds(&Timestamp { seconds: -5, nanos: 0 }), 0);
    }
}
