//! Log-likelihood of whole documents, window by window, and the perplexities that follow.
//!
//! What is kept of a document are sums; every convention is derived from them. Windows are continuations behind a
//! context, and go the way of multiple choice: [`score`] sorts, groups and shards them.

use serde::Serialize;

use super::Grain;
use super::choice::encode::Pair;
use super::choice::score::score;
use crate::compute::comm::Comm;
use crate::compute::data::{Special, TextTokenizer};
use crate::compute::model::{Mask, Net};
use crate::compute::{ComputeError, Result};

/// How a document is cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// As the `lm-eval` package: each token once, behind one token of context; the last window is filled with context.
    /// Special tokens as the tokenizer's file says: one that begins texts is scored, too.
    Rolling,
    /// Each window is a context long and moves on by so many tokens, which are what it predicts.
    Strided(usize),
}

/// What a document contributed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Document {
    /// Sum of log-probabilities, nats.
    pub log_likelihood: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Words, as `re.split(r"\s+", text)` counts them.
    pub words: u64,
    /// Bytes in UTF-8.
    pub bytes: u64,
}

/// Perplexities over documents.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexities {
    /// exp of the mean NLL of a token.
    pub token_perplexity: f64,
    /// exp of the NLL over all words.
    pub word_perplexity: f64,
    /// exp of the NLL over all bytes.
    pub byte_perplexity: f64,
    /// NLL over all bytes, in bits.
    pub bits_per_byte: f64,
}

impl Perplexities {
    /// Of documents, added in order.
    ///
    /// # Errors
    /// They hold no token.
    pub fn of(documents: &[Document]) -> Result<Self> {
        let nll: f64 = documents.iter().map(|d| -d.log_likelihood).sum();
        let count = |of: fn(&Document) -> u64| documents.iter().map(of).sum::<u64>() as f64;
        let (tokens, words, bytes) = (count(|d| d.tokens), count(|d| d.words), count(|d| d.bytes));
        if tokens == 0.0 || bytes == 0.0 {
            return Err(ComputeError::Config("the documents hold no token: give more text".to_owned()));
        }
        Ok(Self {
            token_perplexity: (nll / tokens).exp(),
            word_perplexity: (nll / words).exp(),
            byte_perplexity: (nll / bytes).exp(),
            bits_per_byte: nll / bytes / std::f64::consts::LN_2,
        })
    }
}

impl Windows {
    /// The windows of a document behind `first`, for a model that reads `context` tokens.
    fn of(self, first: u32, ids: &[u32], context: usize) -> Vec<Pair> {
        let step = match self {
            Self::Rolling => context,
            Self::Strided(stride) => stride.clamp(1, context),
        };
        // What is read begins with the token that begins a text.
        let read = [&[first][..], ids].concat();
        let mut pairs = Vec::new();
        let mut done = 0;
        while done < ids.len() {
            let end = (done + if done == 0 { context } else { step }).min(ids.len());
            // Ids done..end are predicted from read[start..end]: at most a context.
            let start = if done == 0 { 0 } else { end.saturating_sub(context) };
            pairs.push(Pair { context: read[start..=done].to_vec(), continuation: ids[done..end].to_vec() });
            done = end;
        }
        pairs
    }
}

/// Words (as [`Document::words`] counts them) and bytes of a text.
pub fn sizes(text: &str) -> (u64, u64) {
    (super::choice::words(text) as u64, text.len() as u64)
}

/// Scores documents. Every rank calls it alike and gets all sums. An empty document contributes nothing but its word.
///
/// # Errors
/// The tokenizer or the model refuses a text, or a rank is gone.
pub fn documents<'a>(
    (net, tokenizer): (&Net, &TextTokenizer),
    comm: &Comm,
    texts: impl IntoIterator<Item = &'a str>,
    windows: Windows,
    grain: Grain,
) -> Result<Vec<Document>> {
    let context = usize::try_from(net.config().max_position_embeddings).unwrap_or(usize::MAX);
    let first = tokenizer.special().bos.unwrap_or(tokenizer.special().eos);
    let (mut found, mut pairs, mut owners) = (Vec::new(), Vec::new(), Vec::new());
    for text in texts {
        // The package scores a token that the tokenizer itself puts first, behind the one that begins texts.
        let special = if windows == Windows::Rolling { Special::Default } else { Special::None };
        let ids = tokenizer.encode(text, special)?;
        for pair in windows.of(first, &ids, context) {
            pairs.push(pair);
            owners.push(found.len());
        }
        let (words, bytes) = sizes(text);
        found.push(Document { log_likelihood: 0.0, tokens: ids.len() as u64, words, bytes });
    }
    // Added in the order of the windows, whoever scored them.
    for (owner, score) in owners.into_iter().zip(score(net, comm, &pairs, Mask::Causal, grain)?) {
        found[owner].log_likelihood += score.log_likelihood;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(windows: Windows, n: u32, context: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
        let ids: Vec<u32> = (0..n).collect();
        windows.of(99, &ids, context).into_iter().map(|p| (p.context, p.continuation)).collect()
    }

    #[test]
    fn rolling_windows_are_those_of_lm_eval() {
        assert_eq!(
            windows(Windows::Rolling, 34, 10),
            [
                (vec![99], (0..10).collect::<Vec<_>>()),
                (vec![9], (10..20).collect()),
                (vec![19], (20..30).collect()),
                ((23..30).collect(), (30..34).collect()),
            ]
        );
        assert_eq!(windows(Windows::Rolling, 4, 10), [(vec![99], vec![0, 1, 2, 3])]);
        assert_eq!(windows(Windows::Rolling, 0, 10), []);
    }

    #[test]
    fn strided_windows_predict_each_token_once_behind_a_full_context() {
        let cut = windows(Windows::Strided(3), 11, 6);
        assert_eq!(
            cut,
            [(vec![99], vec![0, 1, 2, 3, 4, 5]), (vec![2, 3, 4, 5], vec![6, 7, 8]), (vec![4, 5, 6, 7, 8], vec![9, 10]),]
        );
        for (context, continuation) in cut {
            assert!(context.len() + continuation.len() - 1 <= 6);
        }
    }

    #[test]
    fn every_convention_comes_from_the_same_sums() {
        let document = |log_likelihood, tokens, words, bytes| Document { log_likelihood, tokens, words, bytes };
        let found = Perplexities::of(&[document(-6.0, 2, 1, 5), document(-2.0, 2, 3, 3)]).unwrap();
        assert_eq!(found.token_perplexity, 2f64.exp());
        assert_eq!(found.word_perplexity, 2f64.exp());
        assert_eq!(found.byte_perplexity, 1f64.exp());
        assert_eq!(found.bits_per_byte, 1.0 / std::f64::consts::LN_2);
        assert!(Perplexities::of(&[document(0.0, 0, 1, 0)]).is_err());
    }
}
