//! A terminal for tests: a pseudo terminal that a program runs on, and what a person would see on its screen.
//!
//! The screen knows the few control sequences that our programs write, and fails on any other: a test that reads it
//! misses none.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What is to be seen.
#[derive(Debug, Clone)]
pub struct Screen {
    columns: usize,
    /// Every line since the program began; those above the window, too.
    lines: Vec<Vec<char>>,
    pub row: usize,
    pub column: usize,
    pub cursor_hidden: bool,
}

impl Screen {
    fn new(columns: usize) -> Self {
        Self { columns, lines: vec![Vec::new()], row: 0, column: 0, cursor_hidden: false }
    }

    /// The lines without the blanks behind them.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned()).collect()
    }

    /// Where a line stands that has all of these words.
    pub fn find(&self, words: &[&str]) -> Option<usize> {
        self.lines().iter().rposition(|line| words.iter().all(|word| line.contains(word)))
    }

    fn down(&mut self, rows: usize) {
        self.row += rows;
        while self.lines.len() <= self.row {
            self.lines.push(Vec::new());
        }
    }

    fn put(&mut self, c: char) {
        // A full line is left only when there is more.
        if self.column == self.columns {
            self.column = 0;
            self.down(1);
        }
        let line = &mut self.lines[self.row];
        if line.len() <= self.column {
            line.resize(self.column + 1, ' ');
        }
        line[self.column] = c;
        self.column += 1;
    }

    /// Takes bytes; those of a sequence that is not whole yet are given back.
    fn take(&mut self, text: &str) -> usize {
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            match c {
                '\r' => self.column = 0,
                '\n' => self.down(1),
                '\u{1b}' => {
                    let Some(length) = self.sequence(&text[at + 1..]) else { return at };
                    at += length;
                }
                c if c.is_control() => panic!("control character {c:?} on the terminal"),
                c => self.put(c),
            }
            at += c.len_utf8();
        }
        at
    }

    /// A sequence behind its ESC; its length if it is whole.
    fn sequence(&mut self, text: &str) -> Option<usize> {
        let end = text.find(|c: char| c.is_ascii_alphabetic())?;
        let (whole, last) = (&text[..=end], text.as_bytes()[end]);
        let number = whole[..end].strip_prefix('[').unwrap_or_else(|| panic!("unknown sequence {whole:?}"));
        let n = number.parse().unwrap_or(1);
        match (last, number) {
            (b'A', _) => self.row -= n.min(self.row),
            (b'B', _) => self.down(n),
            (b'K', "2") => self.lines[self.row].clear(),
            (b'K', "" | "0") => self.lines[self.row].truncate(self.column),
            (b'J', "" | "0") => {
                self.lines[self.row].truncate(self.column);
                self.lines[self.row + 1..].iter_mut().for_each(Vec::clear);
            }
            (b'm', _) => {}
            (b'l' | b'h', "?25") => self.cursor_hidden = last == b'l',
            _ => panic!("unknown sequence {whole:?}"),
        }
        Some(end + 1)
    }
}

/// A program on a terminal of its own, which Ctrl-C reaches as from a keyboard.
pub struct OnTerminal {
    pub child: Child,
    terminal: File,
    screen: Arc<Mutex<Screen>>,
}

impl OnTerminal {
    /// Starts it on a terminal of so many columns, and 24 lines.
    pub fn start(mut command: Command, columns: u16) -> Self {
        let (mut ours, mut theirs) = (0, 0);
        let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let none = std::ptr::null_mut();
        // SAFETY: two places for descriptors, no name, usual settings, and a valid size.
        assert_eq!(unsafe { libc::openpty(&raw mut ours, &raw mut theirs, none, none.cast(), &raw const size) }, 0);
        // SAFETY: openpty succeeded: both are open, and nobody else has them.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        for end in [&ours, &theirs] {
            // SAFETY: a flag of an open descriptor: programs of other tests must not hold the terminal open.
            unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        let stdio = || Stdio::from(theirs.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio()).env("TERM", "xterm-256color").env_remove("NO_COLOR");
        // SAFETY: setsid and an ioctl on stdin, both safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let done = libc::setsid() >= 0 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0;
                if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            });
        }
        let child = command.spawn().unwrap();
        // The command holds the other end, too.
        drop((command, theirs));
        let terminal = File::from(ours);
        let screen = Arc::new(Mutex::new(Screen::new(usize::from(columns))));
        let (mut reader, seen) = (terminal.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut unread = Vec::new();
            let mut buffer = [0; 4096];
            // Reading fails when the program is gone.
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                unread.extend_from_slice(&buffer[..n]);
                let valid = match std::str::from_utf8(&unread) {
                    Ok(text) => text,
                    Err(e) => std::str::from_utf8(&unread[..e.valid_up_to()]).unwrap(),
                };
                let taken = seen.lock().unwrap().take(valid);
                unread.drain(..taken);
            }
        });
        Self { child, terminal, screen }
    }

    /// Types.
    pub fn keys(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    /// What is to be seen now.
    pub fn screen(&self) -> Screen {
        self.screen.lock().expect("the screen knows every sequence").clone()
    }

    /// Waits until something is to be seen.
    pub fn until(&self, seconds: u64, shows: impl Fn(&Screen) -> bool) -> Screen {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let screen = self.screen();
            if shows(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "not within {seconds} s:\n{}", screen.lines().join("\n"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether the terminal shows what is typed.
    pub fn echoes(&self) -> bool {
        // SAFETY: an all-zero termios is valid, and the pointer is valid for the call.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: see above.
        assert_eq!(unsafe { libc::tcgetattr(self.terminal.as_raw_fd(), &raw mut settings) }, 0);
        settings.c_lflag & libc::ECHO != 0
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
