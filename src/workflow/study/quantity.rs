//! Times and sizes as people write them.

/// Longest time limit that is believed: one year, in seconds.
const LONGEST_S: u64 = 365 * 86_400;

/// Seconds of a time limit: `H:MM:SS`, `D-HH`, `D-HH:MM`, `D-HH:MM:SS`, whole minutes (`90`), or units (`1d`, `32h`,
/// `1h30m`, `45s`).
///
/// # Errors
/// A fragment that says what is wrong and what to write.
pub(super) fn time_s(text: &str) -> Result<u64, String> {
    let bad =
        || format!("`{text}` is not a time: write `H:MM:SS`, `D-HH:MM:SS`, whole minutes, or units as in `1h30m`");
    let seconds = if let Some((days, rest)) = text.split_once('-') {
        let parts: Vec<u64> = rest.split(':').map(digits).collect::<Option<_>>().ok_or_else(bad)?;
        let (h, m, s) = match parts[..] {
            [h] => (h, 0, 0),
            [h, m] => (h, m, 0),
            [h, m, s] => (h, m, s),
            _ => return Err(bad()),
        };
        if h > 23 || m > 59 || s > 59 {
            return Err(format!("`{text}` is not a time: hours end at 23 after a day, minutes and seconds at 59"));
        }
        digits(days).ok_or_else(bad)? * 86_400 + h * 3600 + m * 60 + s
    } else if text.contains(':') {
        let parts: Vec<u64> = text.split(':').map(digits).collect::<Option<_>>().ok_or_else(bad)?;
        match parts[..] {
            [h, m, s] if m < 60 && s < 60 => h * 3600 + m * 60 + s,
            [_, _, _] => return Err(format!("`{text}` is not a time: minutes and seconds end at 59")),
            [_, _] => {
                return Err(format!(
                    "`{text}` could be minutes or hours: write `{text}:00` for hours and minutes, `0:{text}` for minutes and seconds"
                ));
            }
            _ => return Err(bad()),
        }
    } else if let Some(minutes) = digits(text) {
        minutes * 60
    } else {
        units(text).ok_or_else(bad)?
    };
    match seconds {
        0 => Err(format!("`{text}` is no time at all: a job needs at least a second")),
        s if s > LONGEST_S => Err(format!("`{text}` is longer than a year: write at most `365-00`")),
        s => Ok(s),
    }
}

/// A number of at most nine digits.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > 9 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// `1d2h30m15s`: each unit at most once, the larger first.
fn units(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0;
    for (unit, seconds) in [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((number, after)) = rest.split_once(unit) {
            total += digits(number)? * seconds;
            rest = after;
        }
    }
    (rest.is_empty() && !text.is_empty()).then_some(total)
}

/// Bytes of a size: a number and `K`, `M`, `G` or `T`, powers of 1024 as Slurm counts; `GB` and `GiB` mean the same.
///
/// # Errors
/// A fragment that says what is wrong and what to write.
pub(in crate::workflow) fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is not a size: write a number and a unit, as in `80G` or `512M`");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let power = match unit {
        "K" | "KB" | "KiB" => 10,
        "M" | "MB" | "MiB" => 20,
        "G" | "GB" | "GiB" => 30,
        "T" | "TB" | "TiB" => 40,
        _ => return Err(bad()),
    };
    if number.len() > 9 {
        return Err(bad());
    }
    let number: f64 = number.parse().map_err(|_| bad())?;
    let bytes = number * f64::from(1u32 << (power - 10)) * 1024.0;
    if !bytes.is_finite() || bytes < 1.0 || bytes > (1u64 << 60) as f64 {
        return Err(format!("`{text}` is not a size a machine has: write a number and a unit, as in `80G`"));
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in [
            ("32:00:00", 115_200),
            ("00:30:00", 1800),
            ("0:00:01", 1),
            ("120:00:00", 432_000),
            ("1-00:00:00", 86_400),
            ("2-12", 216_000),
            ("2-12:30", 217_800),
            ("90", 5400),
            ("32h", 115_200),
            ("1h30m", 5400),
            ("2d", 172_800),
            ("45s", 45),
        ] {
            assert_eq!(time_s(text), Ok(seconds), "{text}");
        }
        for text in [
            "",
            "0",
            "0:00:00",
            "32:00",
            "1:60:00",
            "1:00:60",
            "1-24:00:00",
            "abc",
            "-1",
            "1-",
            ":",
            "1:2:3:4",
            "1m1h",
            "h",
            "UNLIMITED",
            "999999999h",
            "1.5h",
            "٣:00:00",
            "9999999999",
            "1-1-1",
            "12h 5m",
        ] {
            assert!(time_s(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, size) in
            [("80G", 80u64 << 30), ("512M", 512 << 20), ("1.5T", 3 << 39), ("4KiB", 4096), ("2GB", 2 << 30)]
        {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "80", "G", "80 G", "-1G", "1e3G", "0G", "..G", "1.2.3G", "9999999999G", "999999999T", "80X"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
