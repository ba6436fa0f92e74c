//! Tests of what can be tested without a GPU.

use super::*;
use crate::compute::gpu;
use crate::compute::train::lanes;

#[test]
fn the_watch_ends_what_cannot_go_on() {
    let deadline = Duration::from_secs(2);
    let judge =
        |status, age: Option<u64>| verdict(status, age.map(Duration::from_secs), deadline, |s| format!("<{s}>"));
    assert_eq!(judge(library::SUCCESS, None), None);
    assert_eq!(judge(library::IN_PROGRESS, Some(1)), None);
    assert!(judge(6, None).unwrap().contains("<6>"));
    assert!(judge(library::SUCCESS, Some(3)).unwrap().contains("waited 2 s"));
}

#[test]
fn tensors_are_added_by_the_tree_over_ranks() {
    for ranks in [2, 4, 8] {
        let values = |r: usize| -> Vec<f32> {
            (0..999).map(|i| ((r * 97 + i * 31) as f32).sin() * 10f32.powi((r % 5) as i32)).collect()
        };
        let mut parts: Vec<Tensor> = (0..ranks).map(|r| Tensor::from_slice(&values(r))).collect();
        add_tree(&mut parts).unwrap();
        let mut expected: Vec<Vec<f32>> = (0..ranks).map(values).collect();
        lanes::add_ranks(&mut expected.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        assert_eq!(Vec::<f32>::try_from(&parts[0]).unwrap(), expected[0], "{ranks}");
    }
}

#[test]
fn without_cuda_it_says_what_to_type() {
    if gpu::load().is_ok() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let error = Nccl::join(0, 2, None, dir.path(), Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.exit_code(), exit::USAGE);
    assert!(error.to_string().contains("gpus_per_node"), "{error}");
}

/// The race that the events prevent: gradients are written on the null stream, long after the processor has asked
/// for them to be sent, and read on it as soon as they have come. Needs a GPU, and NCCL.
#[test]
fn messages_wait_for_the_null_stream_and_it_for_them() {
    if gpu::load().is_err() {
        eprintln!("skipped: there is no GPU");
        return;
    }
    // One rank sends to nobody, but its stream is ordered all the same: a copy on it stands for the message.
    let context = CudaContext::new(0).unwrap();
    let (null, stream) = (context.default_stream(), context.new_stream().unwrap());
    let device = Device::Cuda(0);
    let n = 1 << 22;
    let busy = Tensor::randn([4096, 4096], (Kind::Float, device));
    let mut seen_early = 0;
    for round in 1..=20i64 {
        let from = Tensor::zeros([n], (Kind::Float, device));
        let to = Tensor::zeros([n], (Kind::Float, device));
        // The value is there only after milliseconds of work on the null stream.
        let work = (0..8).fold(busy.shallow_clone(), |x, _| busy.matmul(&x).tanh());
        let one = work.f_mean(Kind::Float).unwrap().f_mul_scalar(0.0).unwrap().f_exp().unwrap();
        let mut from = from;
        let _ = from.f_add_(&one.f_mul_scalar(round as f64).unwrap()).unwrap();
        let ordered = round % 2 == 0;
        if ordered {
            stream.join(&null).unwrap();
        }
        // SAFETY: both tensors hold n floats on this device and live to the end of the round.
        unsafe {
            cudarc::driver::result::memcpy_dtod_async(
                to.data_ptr() as u64,
                from.data_ptr() as u64,
                n as usize * 4,
                stream.cu_stream(),
            )
            .unwrap();
        }
        if ordered {
            null.join(&stream).unwrap();
        }
        // On the null stream, at once.
        let sum = to.f_sum(Kind::Double).unwrap().double_value(&[]);
        let right = (sum - round as f64 * n as f64).abs() < 1.0;
        if ordered {
            assert!(right, "round {round}: {sum}");
        } else {
            seen_early += u32::from(!right);
        }
        context.synchronize().unwrap();
    }
    eprintln!("without events {seen_early} of 10 rounds read too early");
    assert!(seen_early > 0, "this test does not show the race");
}
