//! Which vector instructions kernels may use, and one macro that compiles a function for each of them.
//!
//! An [`Isa`] is evidence: it can only be had where the processor has the instructions, so that calling a
//! function compiled for them is sound. Hand-written paths match on [`Isa::level`]; loops that the compiler
//! vectorises well are written once, inside [`for_each_isa!`].

use std::sync::OnceLock;

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

/// Instruction sets that kernels know, from the narrowest to the widest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor has; a fused multiply-add may be a call into the C library.
    Portable,
    /// AVX2 and FMA: 8 floats.
    Avx2,
    /// AVX-512 F, BW, DQ, VL, with AVX2 and FMA: 16 floats.
    Avx512,
}

impl Isa {
    /// The widest one.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa(detect()))
    }

    /// All of them, from the narrowest to the widest: for tests, which compare them.
    pub fn all() -> impl Iterator<Item = Self> {
        let best = Self::best().0;
        [Level::Portable, Level::Avx2, Level::Avx512].into_iter().filter(move |level| *level <= best).map(Isa)
    }

    /// Which one this is.
    pub fn level(self) -> Level {
        self.0
    }

    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// Defines a function whose body is compiled once for every [`Level`]; its first argument, an [`Isa`], chooses.
///
/// The body must call only functions that are inlined into it. `f32::mul_add` in it is one instruction on the
/// vector levels. To give the same bits on all levels it fixes its partial sums itself (sixteen of them suit all),
/// for the compiler never changes the order of floating-point additions.
///
/// ```ignore
/// for_each_isa! {
///     /// y += a x.
///     pub fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
///         for (y, &x) in y.iter_mut().zip(x) {
///             *y = a.mul_add(x, *y);
///         }
///     }
/// }
/// axpy(Isa::best(), &mut y, 2.0, &x);
/// ```
macro_rules! for_each_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)] // The instruction set is one more than the caller's own.
        $vis fn $name(isa: $crate::compute::kernels::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }

            match isa.level() {
                // SAFETY: an `Isa` of this level exists only where the processor has these instructions.
                #[cfg(target_arch = "x86_64")]
                $crate::compute::kernels::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::compute::kernels::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use for_each_isa;

#[cfg(test)]
mod tests {
    use super::*;

    for_each_isa! {
        fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = a.mul_add(x, *y);
            }
        }
    }

    #[test]
    fn every_level_gives_the_bits_of_a_fused_multiply_add() {
        let x: Vec<f32> = (0..100).map(|i| (i as f32).sqrt()).collect();
        for isa in Isa::all() {
            let mut y = x.clone();
            axpy(isa, &mut y, 1.1, &x);
            for (y, x) in y.iter().zip(&x) {
                // One rounding, of the exact value: f64 holds the product of two f32 exactly.
                assert_eq!(*y, (f64::from(1.1f32) * f64::from(*x) + f64::from(*x)) as f32, "{}", isa.name());
            }
        }
    }

    #[test]
    fn levels_are_in_order_and_the_best_is_last() {
        let all: Vec<Isa> = Isa::all().collect();
        assert!(all.windows(2).all(|w| w[0].level() < w[1].level()));
        assert_eq!(all[0].level(), Level::Portable);
        assert_eq!(all.last(), Some(&Isa::best()));
    }
}
