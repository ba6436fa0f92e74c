//! Work that ranks share: independent items, each computed by one rank, with the answers of all on every rank.
//!
//! An item's answer does not depend on who computes it nor on the items beside it, so what is found is the same on any
//! number of ranks.

use std::ops::Range;

use crate::compute::Result;
use crate::compute::comm::Comm;

/// `width` numbers for each of `items`, in order. `each` is given up to `unit` items that follow each other and the room
/// for their numbers; units go to the ranks in turn.
///
/// # Errors
/// What `each` returns, or a rank is gone.
pub fn values(
    comm: &Comm,
    items: usize,
    unit: usize,
    width: usize,
    each: &mut dyn FnMut(Range<usize>, &mut [f64]) -> Result<()>,
) -> Result<Vec<f64>> {
    let mut all = vec![0.0; items * width];
    let unit = unit.max(1);
    for (number, first) in (0..items).step_by(unit).enumerate() {
        if number % comm.size() == comm.rank() {
            let last = (first + unit).min(items);
            each(first..last, &mut all[first * width..last * width])?;
        }
    }
    if comm.size() == 1 || all.is_empty() {
        return Ok(all);
    }
    let everybody = comm.all_gather_f64(&all)?;
    let len = all.len();
    for (i, value) in all.iter_mut().enumerate() {
        let rank = (i / width / unit) % comm.size();
        *value = everybody[rank * len + i];
    }
    Ok(all)
}

/// Whether any rank says so; the same answer everywhere.
///
/// # Errors
/// A rank is gone.
pub fn any(comm: &Comm, said: bool) -> Result<bool> {
    Ok(comm.all_gather(&[u8::from(said)])?.iter().any(|bytes| bytes == &[1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_rank_has_the_answers_of_all() {
        for ranks in [1, 2, 4] {
            for (items, unit) in [(0, 3), (1, 3), (10, 3), (8, 1)] {
                let comms = Comm::in_process(ranks, Duration::from_secs(20), 1).unwrap();
                std::thread::scope(|scope| {
                    for comm in comms {
                        scope.spawn(move || {
                            let mut own = 0;
                            let found = values(&comm, items, unit, 2, &mut |range, to| {
                                for (i, to) in range.clone().zip(to.chunks_exact_mut(2)) {
                                    to.copy_from_slice(&[i as f64, -(i as f64)]);
                                }
                                own += range.len();
                                Ok(())
                            })
                            .unwrap();
                            let expected: Vec<f64> = (0..items).flat_map(|i| [i as f64, -(i as f64)]).collect();
                            assert_eq!(found, expected);
                            assert!(own <= items.div_ceil(ranks) + unit);
                            assert!(any(&comm, comm.rank() + 1 == ranks).unwrap());
                            assert!(!any(&comm, false).unwrap());
                            comm.close().unwrap();
                        });
                    }
                });
            }
        }
    }
}
