//! Times as records write them: RFC 3339, UTC, nanoseconds, ending in Z.

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

/// Always nine digits behind the point, so that times sort as text.
pub fn rfc3339(time: &Timestamp) -> String {
    let days = time.seconds.div_euclid(86_400);
    let second = time.seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", time.nanos)
}

/// Year, month and day of a number of days since 1970, in the proleptic Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
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
