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
}
