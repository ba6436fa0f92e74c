//! Layer norm and RMS norm over rows, forward and backward. Statistics are fp32 in the fixed order of
//! [`super::sums`].
//!
//! Shapes: N rows of h elements; x, y and their gradients `[N, h]`, weight and bias `[h]`, statistics `[N]`.

use super::{for_each_isa, sums};

for_each_isa! {
    /// y = (x - mean) rstd weight + bias; keeps mean and rstd = 1 / sqrt(variance + eps) for the backward pass.
    pub fn layer_norm(
        x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32], mean: &mut [f32], rstd: &mut [f32],
    ) {
        let h = weight.len();
        let scale = 1.0 / h as f32;
        for (((x, y), mean), rstd) in x.chunks_exact(h).zip(y.chunks_exact_mut(h)).zip(mean).zip(rstd) {
            let m = sums::sum(x, |x| x) * scale;
            let variance = sums::sum(x, |x| (x - m) * (x - m)) * scale;
            let r = 1.0 / (variance + eps).sqrt();
            (*mean, *rstd) = (m, r);
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = ((x - m) * r).mul_add(w, b);
            }
        }
    }
}

for_each_isa! {
    /// Adds the gradients of [`layer_norm`] by x, weight and bias to `dx`, `dweight` and `dbias`. `scratch` has 2 h
    /// elements.
    pub fn layer_norm_backward(
        x: &[f32], mean: &[f32], rstd: &[f32], weight: &[f32], dy: &[f32],
        dx: &mut [f32], dweight: &mut [f32], dbias: &mut [f32], scratch: &mut [f32],
    ) {
        let h = weight.len();
        let scale = 1.0 / h as f32;
        let (dw, db) = scratch.split_at_mut(h);
        let (dw, db) = (&mut dw[..h], &mut db[..h]);
        let rows = x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(dx.chunks_exact_mut(h)).zip(mean.iter().zip(rstd));
        dw.fill(0.0);
        db.fill(0.0);
        for (n, (((x, dy), dx), (&m, &r))) in rows.enumerate() {
            if n > 0 && n % sums::ROWS == 0 {
                sums::add(dweight, dw);
                sums::add(dbias, db);
                dw.fill(0.0);
                db.fill(0.0);
            }
            for (((&x, &dy), dw), db) in x.iter().zip(dy).zip(dw.iter_mut()).zip(db.iter_mut()) {
                *dw = dy.mul_add((x - m) * r, *dw);
                *db += dy;
            }
            let along_mean = sums::dot(dy, weight) * scale;
            let along_x = sums::sum3(dy, weight, x, |dy, w, x| (dy * w) * ((x - m) * r)) * scale;
            for (((dx, &x), &dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                let centred = dy.mul_add(w, -along_mean);
                *dx = r.mul_add(((x - m) * r).mul_add(-along_x, centred), *dx);
            }
        }
        sums::add(dweight, dw);
        sums::add(dbias, db);
    }
}

for_each_isa! {
    /// y = (x rstd) weight with rstd = 1 / sqrt(mean(x^2) + eps), which is kept for the backward pass.
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let h = weight.len();
        let scale = 1.0 / h as f32;
        for ((x, y), rstd) in x.chunks_exact(h).zip(y.chunks_exact_mut(h)).zip(rstd) {
            let r = 1.0 / (sums::dot(x, x) * scale + eps).sqrt();
            *rstd = r;
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = (x * r) * w;
            }
        }
    }
}

for_each_isa! {
    /// Adds the gradients of [`rms_norm`] by x and weight to `dx` and `dweight`. `scratch` has h elements.
    pub fn rms_norm_backward(
        x: &[f32], rstd: &[f32], weight: &[f32], dy: &[f32], dx: &mut [f32], dweight: &mut [f32], scratch: &mut [f32],
    ) {
        let h = weight.len();
        let scale = 1.0 / h as f32;
        let dw = &mut scratch[..h];
        dw.fill(0.0);
        let rows = x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(dx.chunks_exact_mut(h)).zip(rstd);
        for (n, (((x, dy), dx), &r)) in rows.enumerate() {
            if n > 0 && n % sums::ROWS == 0 {
                sums::add(dweight, dw);
                dw.fill(0.0);
            }
            for ((&x, &dy), dw) in x.iter().zip(dy).zip(dw.iter_mut()) {
                *dw = dy.mul_add(x * r, *dw);
            }
            let along_x = sums::sum3(dy, weight, x, |dy, w, x| (dy * w) * (x * r)) * scale;
            for (((dx, &x), &dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                *dx = r.mul_add((x * r).mul_add(-along_x, dy * w), *dx);
            }
        }
        sums::add(dweight, dw);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::super::testing::{close, numbers, same_bits};
    use super::*;

    /// The definition in f64: y, and by finite formulas dx, dweight, dbias. `centre`: layer norm, else RMS norm.
    fn exact(x: &[f32], w: &[f32], b: &[f32], dy: &[f32], eps: f64, centre: bool) -> [Vec<f64>; 4] {
        let h = w.len();
        let (mut y, mut dx, mut dw, mut db) = (vec![], vec![], vec![0.0; h], vec![0.0; h]);
        for (x, dy) in x.chunks(h).zip(dy.chunks(h)) {
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let n = h as f64;
            let m = if centre { x.iter().sum::<f64>() / n } else { 0.0 };
            let r = 1.0 / (x.iter().map(|x| (x - m) * (x - m)).sum::<f64>() / n + eps).sqrt();
            let hat: Vec<f64> = x.iter().map(|x| (x - m) * r).collect();
            let g: Vec<f64> = dy.iter().zip(w).map(|(&d, &w)| f64::from(d) * f64::from(w)).collect();
            let along = g.iter().zip(&hat).map(|(g, x)| g * x).sum::<f64>() / n;
            let mean = if centre { g.iter().sum::<f64>() / n } else { 0.0 };
            for i in 0..h {
                y.push(hat[i] * f64::from(w[i]) + f64::from(b[i]));
                dx.push(r * (g[i] - mean - hat[i] * along));
                dw[i] += f64::from(dy[i]) * hat[i];
                db[i] += f64::from(dy[i]);
            }
        }
        [y, dx, dw, db]
    }

    #[test]
    fn norms_follow_their_definition_with_the_same_bits_everywhere() {
        for (n, h) in [(1, 1), (3, 7), (70, 64), (37, 515)] {
            let (x, dy) = (numbers(n * h, 1), numbers(n * h, 2));
            let (w, b) = (numbers(h, 3), numbers(h, 4));
            let zero = vec![0.0; h];
            let mut first: Option<Vec<Vec<f32>>> = None;
            for isa in Isa::all() {
                let (mut mean, mut rstd, mut scratch) = (vec![0.0; n], vec![0.0; n], vec![0.0; 2 * h]);
                let mut layer = [vec![0.0; n * h], vec![1.0; n * h], vec![1.0; h], vec![1.0; h]];
                let [y, dx, dw, db] = &mut layer;
                layer_norm(isa, &x, &w, &b, 1e-5, y, &mut mean, &mut rstd);
                layer_norm_backward(isa, &x, &mean, &rstd, &w, &dy, dx, dw, db, &mut scratch);
                let mut rms = [vec![0.0; n * h], vec![1.0; n * h], vec![1.0; h]];
                let [y, dx, dw] = &mut rms;
                rms_norm(isa, &x, &w, 1e-5, y, &mut rstd);
                rms_norm_backward(isa, &x, &rstd, &w, &dy, dx, dw, &mut scratch);
                for (got, exact, begun) in [
                    (&layer[..], exact(&x, &w, &b, &dy, 1e-5, true), [0.0, 1.0, 1.0, 1.0]),
                    (&rms[..], exact(&x, &w, &zero, &dy, 1e-5, false), [0.0, 1.0, 1.0, 1.0]),
                ] {
                    for ((got, exact), begun) in got.iter().zip(exact).zip(begun) {
                        let exact: Vec<f64> = exact.iter().map(|e| e + begun).collect();
                        // A row of one element has variance 0: its gradient is what rounding leaves.
                        close(got, &exact, if h == 1 { 1e-4 } else { 2e-6 });
                    }
                }
                let all: Vec<Vec<f32>> = layer.into_iter().chain(rms).collect();
                same_bits(&mut first, all, isa);
            }
        }
    }
}
