//! From texts to the ids that are scored.

use super::python;
use crate::compute::Result;
use crate::compute::data::{Special, TextTokenizer};
use crate::compute::model::Mask;

/// How a context and its continuation are cut into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cutting {
    /// Together, as the `lm-eval` package does it: white space that ends the context goes to the continuation, and the
    /// continuation is what follows the tokens of the context alone. Special tokens as the tokenizer's file says.
    Together,
    /// Each alone, without special tokens, one behind the other: no token reaches over the border.
    Apart,
}

/// Ids of a context and of what follows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// What is read.
    pub context: Vec<u32>,
    /// What is scored.
    pub continuation: Vec<u32>,
}

impl Pair {
    /// Cuts a context and a continuation.
    ///
    /// # Errors
    /// The tokenizer refuses a text.
    pub fn new(tokenizer: &TextTokenizer, cutting: Cutting, context: &str, continuation: &str) -> Result<Self> {
        match cutting {
            Cutting::Together => Self::together(tokenizer, context, continuation),
            Cutting::Apart => {
                let context = tokenizer.encode(context, Special::None)?;
                let continuation = tokenizer.encode(continuation, Special::None)?;
                Ok(begun(tokenizer, context, continuation))
            }
        }
    }

    fn together(tokenizer: &TextTokenizer, context: &str, continuation: &str) -> Result<Self> {
        let kept = python::rstrip(context);
        let moved = format!("{}{continuation}", &context[kept.len()..]);
        if context.is_empty() {
            let continuation = tokenizer.encode(&moved, Special::Default)?;
            return Ok(begun(tokenizer, Vec::new(), continuation));
        }
        let whole = tokenizer.encode(&format!("{kept}{moved}"), Special::Default)?;
        let context = tokenizer.encode(kept, Special::Default)?;
        // Where the border falls into a token the whole text decides; the count of the context stays.
        let border = context.len().min(whole.len());
        Ok(begun(tokenizer, context, whole[border..].to_vec()))
    }

    /// What a model that reads `context` tokens reads of it under `mask`, and how many of these are context.
    ///
    /// The last token of a continuation predicts nothing and is not read. Under a full mask it is, where it is seen by the
    /// positions before it: prompt and answer go through the model as one text.
    pub(in crate::compute::evaluate) fn read(&self, context: usize, mask: Mask) -> (Vec<u32>, usize) {
        let mut tokens = [self.context.as_slice(), &self.continuation].concat();
        let prompt = self.context.len();
        if mask != Mask::Full {
            tokens.pop();
        }
        let cut = tokens.len().saturating_sub(context);
        (tokens.split_off(cut), prompt.saturating_sub(cut))
    }
}

/// A continuation is never without a token before it: text that begins stands behind what begins a text, or ends one.
fn begun(tokenizer: &TextTokenizer, context: Vec<u32>, mut continuation: Vec<u32>) -> Pair {
    if !context.is_empty() {
        return Pair { context, continuation };
    }
    let first = tokenizer.special().bos.unwrap_or(tokenizer.special().eos);
    if continuation.first() == Some(&first) {
        continuation.remove(0);
    }
    Pair { context: vec![first], continuation }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> (tempfile::TempDir, TextTokenizer) {
        let dir = tempfile::tempdir().unwrap();
        let texts = ["the river runs under the old bridge", "boats run under bridges over the river"].repeat(8);
        let tokenizer = TextTokenizer::train(dir.path(), 300, texts).unwrap();
        (dir, tokenizer)
    }

    #[test]
    fn white_space_moves_to_the_continuation() {
        let (_dir, tokenizer) = tokenizer();
        let pair = |context: &str, continuation: &str| {
            let pair = Pair::new(&tokenizer, Cutting::Together, context, continuation).unwrap();
            (tokenizer.decode(&pair.context).unwrap(), tokenizer.decode(&pair.continuation).unwrap())
        };
        assert_eq!(pair("the river", " runs"), ("the river".into(), " runs".into()));
        assert_eq!(pair("the river ", "runs"), ("the river".into(), " runs".into()));
        assert_eq!(pair("the river \n", " runs"), ("the river".into(), " \n runs".into()));
        assert_eq!(pair("", " runs").1, " runs");
        assert_eq!(Pair::new(&tokenizer, Cutting::Together, "", " runs").unwrap().context, [0]);
        let apart = Pair::new(&tokenizer, Cutting::Apart, "the river ", "runs").unwrap();
        assert_eq!(tokenizer.decode(&apart.context).unwrap(), "the river ");
        assert_eq!(Pair::new(&tokenizer, Cutting::Apart, "", "runs").unwrap().context, [0]);
    }

    #[test]
    fn the_left_is_cut() {
        let pair = Pair { context: vec![1, 2, 3], continuation: vec![4, 5] };
        for mask in [Mask::Causal, Mask::Prefix] {
            assert_eq!(pair.read(4, mask), (vec![1, 2, 3, 4], 3));
            assert_eq!(pair.read(3, mask), (vec![2, 3, 4], 2));
        }
        assert_eq!(pair.read(5, Mask::Full), (vec![1, 2, 3, 4, 5], 3));
        assert_eq!(pair.read(4, Mask::Full), (vec![2, 3, 4, 5], 2));
    }
}
