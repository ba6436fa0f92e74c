//! Which pairs share a row: pairs that begin with the same tokens are branches behind one copy of them.
//!
//! What is shared is found from the ids, so that choices of one question, questions behind the same text, and contexts
//! that differ only at their end are served alike. Under a causal mask any common beginning can be shared; under a prefix
//! mask only the whole context, whose tokens see each other; under a full mask nothing. Membership follows from the set
//! of pairs alone.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::encode::Pair;
use crate::compute::model::Mask;
use crate::compute::model::native::score::{Ask, Branching};

/// Whether pairs may share a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Those with a common beginning do.
    Packed,
    /// Each has its own.
    Apart,
}

/// A row with the pairs that it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What is computed.
    pub tokens: Branching,
    /// Pairs, by number, and which asks of the row are theirs, in the order of their continuations.
    pub owners: Vec<(usize, Vec<usize>)>,
}

/// A pair joins a row if that saves this part of its tokens.
const SAVES: usize = 8;

/// Tokens of the branches of a row at most: what branches do not see of each other is computed, too.
const BRANCHES: usize = 1024;

/// What the model reads of a pair.
struct Sequence {
    pair: usize,
    inputs: Vec<u32>,
    /// Tokens of the context, of which the last predicts the first target.
    prompt: usize,
    targets: Vec<u32>,
}

impl Sequence {
    fn new(pair: usize, from: &Pair, context: usize, mask: Mask) -> Self {
        let (inputs, prompt) = from.read(context, mask);
        Self { pair, inputs, prompt, targets: from.continuation.clone() }
    }
}

/// The rows that answer `pairs`, for a model that reads `context` tokens; the longest first. Each pair has a token of
/// context at least, and a continuation that is not longer than what the model reads.
pub fn rows(pairs: &[&Pair], context: usize, mask: Mask, how: Rows) -> Vec<Row> {
    let mut all: Vec<Sequence> =
        pairs.iter().enumerate().map(|(number, pair)| Sequence::new(number, pair, context, mask)).collect();
    // Beginnings that are alike stand together; under a prefix mask contexts that are equal.
    let shared = |s: &Sequence| if mask == Mask::Prefix { s.inputs[..s.prompt].to_vec() } else { Vec::new() };
    all.sort_by_cached_key(|s| (shared(s), s.inputs.clone(), s.targets.clone()));
    let mut rows = Vec::new();
    let mut begin = 0;
    while begin < all.len() {
        let first = &all[begin];
        let (mut end, mut trunk, mut total) = (begin + 1, first.inputs.len(), first.inputs.len());
        while let Some(next) = all.get(end).filter(|_| how == Rows::Packed && mask != Mask::Full) {
            if mask == Mask::Prefix && shared(next) != shared(first) {
                break;
            }
            // As the rows are sorted, what the next shares with the first it shares with all between.
            let common = first.inputs.iter().zip(&next.inputs).take_while(|(a, b)| a == b).count().min(trunk);
            let members = end - begin;
            let saved = (members * common).saturating_sub((members - 1) * trunk);
            let branches = total + next.inputs.len() - (members + 1) * common;
            if saved * SAVES < next.inputs.len() || branches > BRANCHES {
                break;
            }
            (trunk, total) = (common, total + next.inputs.len());
            end += 1;
        }
        rows.push(row(&all[begin..end], trunk));
        begin = end;
    }
    rows.sort_by_key(|row| Reverse(row.tokens.tokens()));
    rows
}

/// A row of sequences that share their first `trunk` tokens.
fn row(members: &[Sequence], trunk: usize) -> Row {
    let mut tokens = Branching { trunk: members[0].inputs[..trunk].to_vec(), ..Branching::default() };
    tokens.prompt = members.iter().map(|m| m.prompt.min(trunk)).min().unwrap_or(0);
    let mut asked: BTreeMap<Ask, usize> = BTreeMap::new();
    let mut owners = Vec::new();
    let mut begin = trunk;
    for member in members {
        let own = &member.inputs[trunk..];
        let asks = member.targets.iter().enumerate().map(|(i, &target)| {
            let at = member.prompt - 1 + i;
            let ask = Ask { place: if at < trunk { at } else { begin + at - trunk }, target };
            *asked.entry(ask).or_insert_with(|| {
                tokens.asks.push(ask);
                tokens.asks.len() - 1
            })
        });
        owners.push((member.pair, asks.collect()));
        if !own.is_empty() {
            begin += own.len();
            tokens.branches.push(own.to_vec());
        }
    }
    Row { tokens, owners }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(context: &[u32], continuation: &[u32]) -> Pair {
        Pair { context: context.to_vec(), continuation: continuation.to_vec() }
    }

    fn made(pairs: &[Pair], context: usize, mask: Mask, how: Rows) -> Vec<Row> {
        rows(&pairs.iter().collect::<Vec<_>>(), context, mask, how)
    }

    fn ask(place: usize, target: u32) -> Ask {
        Ask { place, target }
    }

    #[test]
    fn choices_of_a_question_are_branches() {
        let pairs = [pair(&[1, 2, 3], &[7, 8]), pair(&[1, 2, 3], &[4]), pair(&[1, 2, 3], &[7, 9, 5])];
        let found = made(&pairs, 100, Mask::Causal, Rows::Packed);
        // Sorted: the second reads 1 2 3, the first 1 2 3 7, the third 1 2 3 7 9.
        let tokens = Branching {
            trunk: vec![1, 2, 3],
            branches: vec![vec![7], vec![7, 9]],
            prompt: 3,
            asks: vec![ask(2, 4), ask(2, 7), ask(3, 8), ask(4, 9), ask(5, 5)],
        };
        let owners = vec![(1, vec![0]), (0, vec![1, 2]), (2, vec![1, 3, 4])];
        assert_eq!(found, [Row { tokens, owners }]);
        assert_eq!(made(&pairs, 100, Mask::Prefix, Rows::Packed), found);
        // Under a full mask the last target is read, too.
        for (mask, how, read) in
            [(Mask::Full, Rows::Packed, &[1, 2, 3, 7, 9, 5][..]), (Mask::Causal, Rows::Apart, &[1, 2, 3, 7, 9])]
        {
            let found = made(&pairs, 100, mask, how);
            assert_eq!(found.len(), 3);
            assert_eq!(found[0].tokens.trunk, read);
            assert_eq!(found[0].tokens.asks, [ask(2, 7), ask(3, 9), ask(4, 5)]);
            assert!(found.iter().all(|row| row.tokens.branches.is_empty()));
        }
    }

    #[test]
    fn contexts_that_differ_at_their_end_share_their_beginning_under_a_causal_mask() {
        let pairs = [pair(&[1, 2, 3, 4], &[9, 8]), pair(&[1, 2, 5], &[9, 8])];
        let found = made(&pairs, 100, Mask::Causal, Rows::Packed);
        assert_eq!((found.len(), &found[0].tokens.trunk[..], found[0].tokens.prompt), (1, &[1, 2][..], 2));
        assert_eq!(found[0].tokens.branches, [vec![3, 4, 9], vec![5, 9]]);
        assert_eq!(found[0].tokens.asks, [ask(3, 9), ask(4, 8), ask(5, 9), ask(6, 8)]);
        let found = made(&pairs, 100, Mask::Prefix, Rows::Packed);
        assert_eq!(found.iter().map(|row| row.tokens.prompt).collect::<Vec<_>>(), [4, 3]);
    }

    #[test]
    fn a_row_grows_while_that_saves_tokens() {
        // Questions that have little in common stay apart, however many begin alike.
        let far: Vec<Pair> = (0..30u32)
            .map(|i| pair(&[&[1][..], &(0..20).map(|k| 100 * i + k).collect::<Vec<_>>()].concat(), &[5]))
            .collect();
        assert_eq!(made(&far, 100, Mask::Causal, Rows::Packed).len(), 30);
        // Many choices behind one word do not make a row without end.
        let many: Vec<Pair> = (0..900u32).map(|i| pair(&[1], &[i + 2, 3, 4])).collect();
        let found = made(&many, 100, Mask::Causal, Rows::Packed);
        assert!(found.len() > 1 && found.iter().all(|row| row.tokens.tokens() <= BRANCHES + 1));
        assert_eq!(found.iter().map(|row| row.owners.len()).sum::<usize>(), 900);
    }

    #[test]
    fn rows_follow_from_the_set_of_pairs() {
        let mut pairs: Vec<Pair> = (0..40u32)
            .map(|i| pair(&(0..5 + i / 4).map(|k| k + 10 * (i / 4)).collect::<Vec<_>>(), &vec![i; 1 + i as usize % 3]))
            .collect();
        let named = |pairs: &[Pair]| -> Vec<(Branching, Vec<(Pair, Vec<usize>)>)> {
            let rows = made(pairs, 9, Mask::Causal, Rows::Packed);
            let owners = |row: &Row| row.owners.iter().map(|(n, asks)| (pairs[*n].clone(), asks.clone())).collect();
            rows.iter().map(|row| (row.tokens.clone(), owners(row))).collect()
        };
        let before = named(&pairs);
        assert!(before.len() < 30, "{}", before.len());
        pairs.reverse();
        assert_eq!(named(&pairs), before);
    }
}
