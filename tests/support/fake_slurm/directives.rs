//! How sbatch reads the options in a script.

/// The words on an `#SBATCH` line after the marker, by the rules of sbatch's own parser: a backslash takes
/// the next character as it is (between quotes too), quotes group, an unquoted `#` starts a comment.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', _) => word.get_or_insert_default().extend(chars.next()),
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) => break,
            (c, None) if c.is_ascii_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// The words of every `#SBATCH` line of `script`: those before its first command.
pub fn of_script(script: &str) -> Vec<String> {
    script
        .lines()
        .take_while(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
        .filter_map(|line| line.strip_prefix("#SBATCH"))
        .flat_map(words)
        .collect()
}
