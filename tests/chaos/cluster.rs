//! The sandbox as the faults see it: processes by node and by attempt, daemons that are killed and started again, a small
//! disk that can be filled. It kills only processes that live in its own nodes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::sandbox::{Sandbox, assert_ok};

/// Of slurm.conf: a job of a higher partition takes the nodes of lower ones, which are requeued. What is told to end has
/// the time that Slurm gives it where a site says nothing: less than the controller takes to write down a requeue, as in
/// the other tests, and one that is killed then forgets it, with nobody left to ask again.
const LINES: &str = "KillWait=30\nPreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n\
                     PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=120 State=UP";

pub const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

/// The disk of the checkpoints.
const DISK_SIZE: &str = "192m";

/// A sandbox of the chaos run's own, and the folder that everything of it lies in.
pub struct Cluster {
    pub slurm: Sandbox,
    pub dir: PathBuf,
}

impl Cluster {
    /// Starts the sandbox in `dir`; the disk comes first, so that the nodes see it.
    pub fn start(dir: &Path) -> Self {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        let disk = dir.join("disk");
        fs::create_dir_all(&disk).unwrap();
        let mount = ["-t", "tmpfs", "-o", &format!("size={DISK_SIZE},mode=0755"), "chaos"];
        assert_ok(&Command::new("mount").args(mount).arg(&disk).output().unwrap(), &["mount"]);
        let slurm = Sandbox::start(&dir.join("sandbox"), &[], LINES);
        Self { slurm, dir: dir.to_owned() }
    }

    /// The disk of the checkpoints.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// Writes until there is no room left; again, when there is some again.
    pub fn fill_disk(&self) {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.disk().join("filler")).unwrap();
        let zeros = vec![0u8; 1 << 16];
        for size in [1 << 16, 1 << 12] {
            while file.write_all(&zeros[..size]).is_ok() {}
        }
    }

    /// Makes room again.
    pub fn free_disk(&self) {
        let _ = fs::remove_file(self.disk().join("filler"));
    }

    /// Removes the checkpoints of a study that has ended.
    pub fn clear_disk(&self) {
        for entry in fs::read_dir(self.disk()).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
    }

    /// Processes that live on a node, without the one that keeps its namespaces: they are its hardware.
    pub fn processes_of(&self, node: &str) -> Vec<u32> {
        let Some(keeper) = self.number("keepers", node) else { return Vec::new() };
        let Some(space) = network_of(keeper) else { return Vec::new() };
        processes().into_iter().filter(|&pid| pid != keeper && network_of(pid).as_ref() == Some(&space)).collect()
    }

    /// The node that a process lives on.
    pub fn node_of(&self, pid: u32) -> Option<&'static str> {
        let space = network_of(pid)?;
        NODES.into_iter().find(|node| self.number("keepers", node).and_then(network_of).as_ref() == Some(&space))
    }

    /// The slurmd of a node, if it lives.
    pub fn slurmd(&self, node: &str) -> Option<u32> {
        self.number("run", &format!("slurmd-{node}.pid")).filter(|&pid| lives(pid) && name_of(pid) == "slurmd")
    }

    /// The controller, if it lives.
    pub fn slurmctld(&self) -> Option<u32> {
        self.number("run", "slurmctld.pid").filter(|&pid| lives(pid) && name_of(pid) == "slurmctld")
    }

    fn number(&self, dir: &str, name: &str) -> Option<u32> {
        fs::read_to_string(self.dir.join("sandbox").join(dir).join(name)).ok()?.trim().parse().ok()
    }

    /// Removes what the steps of a dead node left in its folders, as a boot does: their sockets would keep a step of the
    /// same number from being started there ("Address already in use").
    pub fn boot(&self, node: &str) {
        let sandbox = self.dir.join("sandbox");
        for dir in [sandbox.join(format!("spool-{node}")), sandbox.join("tmp").join(node)] {
            for path in fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
                if path.file_name().is_some_and(|name| name.to_string_lossy().contains("pmix")) {
                    let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
                }
            }
        }
    }

    /// Starts what is dead of the daemons, and waits until every node is in service again. Not by `slurm-sandbox up`,
    /// which would start a cluster anew that takes its time.
    pub fn repair(&self) {
        if self.slurmctld().is_none() {
            self.start_daemon("head", &["slurmctld"]);
        }
        for node in NODES.into_iter().filter(|node| self.slurmd(node).is_none()) {
            self.start_daemon(node, &["slurmd", "-N", node]);
        }
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            let words = ["sinfo", "--noheader", "--Node", "--partition=debug", "--format=%N %t"];
            let output = self.slurm.on("head", 30).args(words).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let serves =
                |line: &&str| ["idle", "mix", "alloc", "comp"].iter().any(|s| line.ends_with(&format!(" {s}")));
            if output.status.success() && text.lines().filter(serves).count() == NODES.len() {
                return;
            }
            // Slurm takes a node out of service whose processes it could not end in time.
            for line in text.lines().filter(|line| line.contains("drain") || line.ends_with(" down")) {
                let node = line.split(' ').next().unwrap_or_default();
                let resume = format!("nodename={node}");
                let _ = self.slurm.on("head", 30).args(["scontrol", "update", &resume, "state=resume"]).output();
            }
            assert!(Instant::now() < deadline, "the nodes do not come up again:\n{text}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Starts a daemon of Slurm on a node; it cuts itself off.
    fn start_daemon(&self, node: &str, words: &[&str]) {
        let keeper = self.number("keepers", node).expect("the keeper of a node lives").to_string();
        let conf = self.dir.join("sandbox/etc/slurm.conf");
        let status = Command::new("setsid")
            .args(["nsenter", "--target", &keeper, "--net", "--uts", "--mount", "--"])
            .arg(words[0])
            .arg("-f")
            .arg(&conf)
            .args(&words[1..])
            .env_clear()
            .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LANG", "C.UTF-8")])
            .env("SLURM_CONF", &conf)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "{words:?} does not start on {node}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The nodes hold the disk: they go first.
        self.slurm.stop();
        let _ = Command::new("umount").arg(self.disk()).output();
    }
}

/// Every process of the machine.
pub fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether it runs: not if it has ended and waits to be collected.
pub fn lives(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // `1 (name) S ...`
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Its name, cut to 15 bytes by the kernel.
pub fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Its words.
pub fn words_of(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn network_of(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

/// Ends a process at once. Whether it was alive.
pub fn kill(pid: u32) -> bool {
    // SAFETY: kill has no preconditions; the process is one of the sandbox's.
    lives(pid) && unsafe { libc::kill(pid as i32, libc::SIGKILL) } == 0
}

/// Looks every few milliseconds until there is an answer; none after `limit`.
pub fn soon<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
