//! The one rounding. Every format prints what is decided here.

/// Numbers at or beyond this print in scientific form: nobody reads 300 digits of an exploded perplexity.
const PLAIN_BELOW: f64 = 1e12;

/// `x` with `digits` decimals. Rounds the exact binary value, halves to even; a result of zero has no sign.
/// `x` is finite.
pub fn fixed(x: f64, digits: u8) -> String {
    let digits = usize::from(digits);
    if x.abs() >= PLAIN_BELOW {
        return format!("{x:.digits$e}");
    }
    let text = format!("{x:.digits$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|b| matches!(b, b'0' | b'.')) => rest.to_owned(),
        _ => text,
    }
}

/// How many digits a number is printed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Digits behind the point.
    Decimals(u8),
    /// Digits from the first one that is not 0.
    Significant(u8),
}

impl Rounding {
    /// `x`, rounded. `x` is finite.
    pub fn print(self, x: f64) -> String {
        match self {
            Self::Decimals(digits) => fixed(x, digits),
            Self::Significant(digits) => significant(x, digits),
        }
    }

    /// `x` rounded at the place where `value` is: a spread has the decimals of its number.
    pub fn print_like(self, value: f64, x: f64) -> String {
        match self {
            Self::Decimals(digits) => fixed(x, digits),
            Self::Significant(digits) => match last_place(value, digits) {
                Some(place) if place >= 0 => fixed(x, u8::try_from(place).unwrap_or(u8::MAX)),
                Some(place) => {
                    let zeros = place.unsigned_abs() as usize;
                    let whole = fixed(x / 10f64.powi(-place), 0);
                    if whole == "0" { whole } else { format!("{whole}{}", "0".repeat(zeros)) }
                }
                None => significant(x, digits),
            },
        }
    }
}

/// `x` with `digits` significant digits: `0.0123`, `12.3`, `12300`; far from 1 in scientific form. `x` is finite.
pub fn significant(x: f64, digits: u8) -> String {
    let after_first = usize::from(digits.max(1)) - 1;
    match last_place(x, digits) {
        Some(place) if place >= 0 => fixed(x, u8::try_from(place).unwrap_or(u8::MAX)),
        Some(place) => {
            // 1.23e4 is 123 and two zeros.
            let text = format!("{x:.after_first$e}");
            let digits = text.split('e').next().unwrap_or_default().replace('.', "");
            format!("{digits}{}", "0".repeat(place.unsigned_abs() as usize))
        }
        None => format!("{x:.after_first$e}"),
    }
}

/// Decimals of the last significant digit, negative left of the point; `None` beyond 1e12 and below 1e-12.
fn last_place(x: f64, digits: u8) -> Option<i32> {
    let after_first = i32::from(digits.max(1)) - 1;
    if x == 0.0 {
        return Some(after_first);
    }
    // The exponent after rounding: 9.996 with three digits is 10.0.
    let text = format!("{x:.*e}", usize::from(digits.max(1)) - 1);
    let exponent: i32 = text.rsplit_once('e')?.1.parse().ok()?;
    (-12..12).contains(&exponent).then_some(after_first - exponent)
}

/// `x` with a suffix for thousands: `1.4B`, `170.6K`, `12.0`.
pub fn with_suffix(x: f64, digits: u8) -> String {
    const SUFFIXES: [&str; 5] = ["", "K", "M", "B", "T"];
    let mut power = 0;
    let mut scaled = x;
    // What rounds to 1000 goes to the next suffix: 999.96K is 1.0M.
    while power + 1 < SUFFIXES.len() && fixed(scaled.abs(), digits).parse().unwrap_or(0.0) >= 1000.0 {
        power += 1;
        scaled = x / 1000f64.powi(power as i32);
    }
    format!("{}{}", fixed(scaled, digits), SUFFIXES[power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_and_signs() {
        for (x, digits, text) in [
            // Halves that binary holds exactly go to even.
            (0.125, 2, "0.12"),
            (0.375, 2, "0.38"),
            (2.5, 0, "2"),
            // 2.675 lies below its half in binary.
            (2.675, 2, "2.67"),
            (-0.001, 2, "0.00"),
            (-0.0, 1, "0.0"),
            (-0.4, 0, "0"),
            (-0.006, 2, "-0.01"),
            (99.995, 2, "100.00"),
            (9.9999, 2, "10.00"),
            (1e300, 2, "1.00e300"),
            (-2.5e12, 1, "-2.5e12"),
        ] {
            assert_eq!(fixed(x, digits), text, "{x}");
        }
    }

    #[test]
    fn suffixes() {
        for (x, digits, text) in [
            (1_414_647_808.0, 1, "1.4B"),
            (170_624.0, 1, "170.6K"),
            (999_960.0, 1, "1.0M"),
            (999.0, 0, "999"),
            (12.0, 1, "12.0"),
            (0.0, 1, "0.0"),
            (-1500.0, 1, "-1.5K"),
            (3e15, 0, "3000T"),
        ] {
            assert_eq!(with_suffix(x, digits), text, "{x}");
        }
    }

    #[test]
    fn significant_digits() {
        for (x, digits, text) in [
            (0.012345, 3, "0.0123"),
            (12.345, 3, "12.3"),
            (9.996, 3, "10.0"),
            (0.0, 3, "0.00"),
            (-0.0, 1, "0"),
            (12345.0, 3, "12300"),
            (-12345.0, 3, "-12300"),
            (99960.0, 3, "100000"),
            (123.0, 3, "123"),
            (1.5e-9, 2, "0.0000000015"),
            (1.234e-20, 3, "1.23e-20"),
            (1.234e20, 3, "1.23e20"),
        ] {
            assert_eq!(significant(x, digits), text, "{x}");
        }
        // A spread stands at the place of its number.
        for (value, spread, text) in
            [(12.345, 0.0987, "0.1"), (12345.0, 678.0, "700"), (12345.0, 3.0, "0"), (0.5, 0.01234, "0.012")]
        {
            assert_eq!(Rounding::Significant(3).print_like(value, spread), text, "{value}");
        }
        assert_eq!(Rounding::Decimals(2).print_like(1e3, 0.126), "0.13");
    }
}
