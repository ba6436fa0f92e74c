//! Ranks over a real MPI: sums, faults, and what waiting costs. The test binary starts itself under `mpirun`; what a
//! rank then does is its *role*.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use seedbed::compute::comm::{Comm, Wire};
use seedbed::compute::train::exchange::Exchange;
use seedbed::compute::train::lanes;
use seedbed::record::exit;
use tch::Tensor;

const ROLE: &str = "SEEDBED_TEST_RANK";

/// Elements of a shard chunk.
const CHUNK: usize = 4096;

/// `n` ranks of this binary in `role`. Whatever a rank does, its launcher sees it end well and after the others
/// that are waited for: nobody is killed because another one failed. `codes` gets a line (rank, exit code) each.
fn launch(n: usize, role: &str, wanted: usize, codes: &Path) -> Command {
    let script = r#""$0" "$@"; echo "$OMPI_COMM_WORLD_RANK $?" >>"$CODES"
        while [ "$(wc -l <"$CODES")" -lt "$WANTED" ]; do sleep 0.05; done"#;
    std::fs::write(codes, "").unwrap();
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "120", "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]);
    command.arg(n.to_string()).args(["sh", "-c", script]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "ranks::as_a_rank", "--nocapture"]);
    command.env(ROLE, role).env("CODES", codes).env("WANTED", wanted.to_string());
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The exit codes by rank, and what was printed.
fn run(n: usize, role: &str, wanted: usize, variables: &[(&str, &str)]) -> (Vec<(usize, i32)>, String) {
    let dir = tempfile::tempdir().unwrap();
    let codes = dir.path().join("codes");
    let output: Output = launch(n, role, wanted, &codes).envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let mut all: Vec<(usize, i32)> = std::fs::read_to_string(&codes)
        .unwrap()
        .lines()
        .map(|line| {
            let (rank, code) = line.split_once(' ').unwrap();
            (rank.parse().unwrap(), code.parse().unwrap())
        })
        .collect();
    all.sort_unstable();
    (all, text)
}

/// Not a test of its own: what a rank does that another test has started.
#[test]
fn as_a_rank() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let code = match role.as_str() {
        "sum" => sum(),
        "awaited" => awaited(),
        "killed" => lost(libc::SIGKILL),
        "stopped" => lost(libc::SIGSTOP),
        "leaves" => leaves(),
        other => panic!("{other}"),
    };
    std::process::exit(code);
}

/// Numbers whose sum depends on the order.
fn gradient(rank: usize, group: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((rank * 97 + group * 13 + i * 31) as f32).sin() * 10f32.powi(((rank + i) % 5) as i32)).collect()
}

/// Gradients out and weights back, three times; every rank compares with plain loops.
fn sum() -> i32 {
    let comm = Comm::open(Duration::from_secs(60)).unwrap();
    let (rank, ranks) = (comm.rank(), comm.size());
    // One that is longer than what is on its way at a time, and one that is cut in the midst of a piece.
    let lens = [3 * CHUNK * ranks, 300 * CHUNK * ranks, CHUNK * ranks];
    let expected: Vec<Vec<f32>> = lens
        .iter()
        .enumerate()
        .map(|(group, &len)| {
            let mut parts: Vec<Vec<f32>> = (0..ranks).map(|r| gradient(r, group, len)).collect();
            lanes::add_ranks(&mut parts.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
            parts.swap_remove(0)
        })
        .collect();
    let mut exchange = Exchange::new(&comm, lens.len());
    let mut weights: Vec<Tensor> = lens.iter().map(|&n| Tensor::from_slice(&vec![0f32; n])).collect();
    for _ in 0..3 {
        for (group, &len) in lens.iter().enumerate().rev() {
            exchange.wait_weights(group).unwrap();
            exchange.send_gradient(group, Tensor::from_slice(&gradient(rank, group, len))).unwrap();
        }
        assert_eq!(comm.all_gather_f64(&[rank as f64]).unwrap(), (0..ranks).map(|r| r as f64).collect::<Vec<_>>());
        for (group, sum) in exchange.finish_gradients().unwrap().into_iter().enumerate() {
            let own = (lens[group] / ranks) as i64;
            let part = |t: &Tensor| t.narrow(0, rank as i64 * own, own);
            part(&weights[group]).copy_(&part(&sum));
            exchange.send_weights(group, &weights[group]).unwrap();
        }
    }
    exchange.drain().unwrap();
    for (weights, expected) in weights.iter_mut().zip(&expected) {
        assert!(Vec::<f32>::try_from(&*weights).unwrap() == *expected);
    }
    let elements: usize = lens.iter().sum();
    let bytes = (3 * 2 * elements / ranks * (ranks - 1) * 4) as u64;
    let traffic = comm.traffic();
    assert!(traffic.sent >= bytes && traffic.sent < bytes + 1000, "{traffic:?} of {bytes}");
    assert_eq!(traffic.sent, traffic.received);
    let gathered = comm.collect(format!("rank {rank}").as_bytes()).unwrap();
    assert_eq!(gathered.len(), if rank == 0 { ranks } else { 0 });
    assert_eq!(comm.broadcast(if rank == 0 { b"word" } else { b"" }).unwrap(), b"word");
    drop(exchange);
    comm.close().unwrap();
    0
}

#[test]
fn over_mpi_the_sums_are_those_of_the_tree() {
    for (ranks, variables) in [
        (2, &[][..]),
        (4, &[]),
        (2, &[("OMPI_MCA_btl", "self,tcp")]),
        (2, &[("OMPI_MCA_btl_vader_single_copy_mechanism", "cma")]),
    ] {
        let (codes, text) = run(ranks, "sum", ranks, variables);
        assert_eq!(codes, (0..ranks).map(|r| (r, 0)).collect::<Vec<_>>(), "{variables:?}\n{text}");
    }
}

/// Rank 1 disappears in the midst of an exchange.
fn lost(signal: libc::c_int) -> i32 {
    let comm = Comm::open(Duration::from_secs(2)).unwrap();
    let mut exchange = Exchange::new(&comm, 1);
    let began = Instant::now();
    if comm.rank() == 1 {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            // SAFETY: this process itself.
            unsafe { libc::kill(libc::getpid(), signal) };
        });
    }
    loop {
        let done = exchange
            .send_gradient(0, Tensor::from_slice(&vec![1f32; 512 * CHUNK]))
            .and_then(|()| exchange.finish_gradients())
            .and_then(|sums| exchange.send_weights(0, &sums[0]))
            .and_then(|()| exchange.drain());
        if let Err(error) = done {
            eprintln!("after {:.1} s: {error}", began.elapsed().as_secs_f64());
            return i32::from(error.exit_code());
        }
        assert!(began.elapsed() < Duration::from_secs(30), "nobody was lost");
    }
}

#[test]
fn who_loses_a_rank_ends_with_71_though_nobody_kills_it() {
    let expected: Vec<(usize, i32)> = [0, 2, 3].map(|r| (r, i32::from(exit::COLLECTIVE_TIMEOUT))).to_vec();
    let (codes, text) = run(4, "stopped", 3, &[]);
    assert_eq!(codes, expected, "{text}");
    let (codes, text) = run(4, "killed", 4, &[]);
    let survivors: Vec<(usize, i32)> = codes.iter().copied().filter(|(rank, _)| *rank != 1).collect();
    assert_eq!(survivors, expected, "{text}");
    assert!(codes.contains(&(1, 137)), "{codes:?}");
}

/// Rank 1 ends without a word; the others want to leave in order.
fn leaves() -> i32 {
    let comm = Comm::open(Duration::from_secs(2)).unwrap();
    comm.barrier().unwrap();
    if comm.rank() == 1 {
        return 1;
    }
    match comm.close() {
        Ok(()) => 0,
        Err(error) => i32::from(error.exit_code()),
    }
}

#[test]
fn nobody_hangs_at_the_end() {
    let (codes, text) = run(2, "leaves", 2, &[]);
    assert_eq!(codes, [(0, i32::from(exit::COLLECTIVE_TIMEOUT)), (1, 1)], "{text}");
}

/// Nanoseconds that this process's threads besides this one have had a processor.
fn others_ns() -> u64 {
    // SAFETY: asks for a number.
    let own = unsafe { libc::syscall(libc::SYS_gettid) }.to_string();
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .filter(|task| task.file_name().to_string_lossy() != own)
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

fn own_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// Arithmetic in the nearest cache.
fn compute(values: &mut [f32], rounds: usize) {
    for _ in 0..rounds {
        for v in values.iter_mut() {
            *v = *v * 0.999 + 0.001;
        }
        std::hint::black_box(&mut *values);
    }
}

/// Rank 0 computes on one core, in turns with and without a gradient that rank 1 does not send yet.
fn awaited() -> i32 {
    // SAFETY: a set of processors is plain bits; this thread and the one of messages stay on one.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
    let comm = Comm::open(Duration::from_secs(60)).unwrap();
    let first = comm.is_first();
    let mut values = vec![1f32; 1024];
    // As long as a block's backward pass: 40 ms of a processor.
    let mut rounds = 1000;
    loop {
        let before = own_ns();
        compute(&mut values, rounds);
        match own_ns() - before {
            ns if ns < 40_000_000 => rounds *= 2,
            _ => break,
        }
    }
    let (mut quiet, mut busy) = (f64::MAX, f64::MAX);
    let (mut theirs, mut ours) = (0, 0);
    for _ in 0..12 {
        comm.barrier().unwrap();
        let time = |values: &mut [f32]| {
            let began = Instant::now();
            compute(values, rounds);
            began.elapsed().as_secs_f64()
        };
        let gradient = || Tensor::from_slice(&vec![1f32; 64 * CHUNK]);
        if first {
            // The thread of messages comes to rest after the barrier.
            std::thread::sleep(Duration::from_millis(5));
            quiet = quiet.min(time(&mut values));
            let flight = comm.reduce(gradient(), Wire::Fp32).unwrap();
            let (others, own) = (others_ns(), own_ns());
            busy = busy.min(time(&mut values));
            theirs += others_ns() - others;
            ours += own_ns() - own;
            comm.exchange(&[(1, b"go")], &mut []).unwrap();
            drop(flight.wait().unwrap());
        } else {
            let mut word = [0; 2];
            comm.exchange(&[], &mut [(0, &mut word)]).unwrap();
            drop(comm.reduce(gradient(), Wire::Fp32).unwrap().wait().unwrap());
        }
    }
    // How long a small message takes, there and back.
    let mut small: Vec<f64> = (0..300)
        .map(|_| {
            let began = Instant::now();
            comm.all_gather_f64(&[1.0]).unwrap();
            began.elapsed().as_secs_f64()
        })
        .collect();
    small.sort_unstable_by(f64::total_cmp);
    if first {
        println!(
            "awaited: processor time {:.4} of compute's, wall time {:.4}; a small message {:.0} us",
            theirs as f64 / ours as f64,
            busy / quiet,
            small[150] * 1e6
        );
    }
    comm.close().unwrap();
    0
}

#[test]
fn compute_hardly_notices_that_a_message_is_awaited() {
    let (codes, text) = run(2, "awaited", 2, &[]);
    assert_eq!(codes, [(0, 0), (1, 0)], "{text}");
    let line = text.lines().find(|l| l.contains("awaited: ")).unwrap_or_else(|| panic!("{text}"));
    println!("{line}");
    let share: f64 = line.split("processor time ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(share > 0.0 && share <= 0.03, "{line}");
}
