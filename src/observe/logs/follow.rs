//! A log as an asynchronous stream of chunks.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream::try_unfold;
use tokio::time::{Instant, sleep_until};

use super::reader::LogReader;
use super::watch::Watcher;
use crate::ops::task::blocking;

/// How long to collect output of a busy log before reading it again.
const COLLECT: Duration = Duration::from_millis(5);

/// Inputs for following a log.
pub struct Follow {
    /// Notifies about changes.
    pub watcher: Watcher,
    /// Completes when the writer has written everything.
    pub ended: BoxFuture<'static, ()>,
}

/// The chunks of a log. With `follow` it waits for more, and ends when everything was read after `ended`; the reader
/// must be a following one. Nothing is read ahead of the consumer.
pub fn stream(reader: LogReader, follow: Option<Follow>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let state = Streaming {
        reader,
        follow,
        ended: false,
        woken: Instant::now() - COLLECT,
    };
    try_unfold(state, |state| state.next())
}

struct Streaming {
    reader: LogReader,
    follow: Option<Follow>,
    ended: bool,
    /// When it last waited.
    woken: Instant,
}

impl Streaming {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            let watcher = self.follow.as_ref().map(|follow| follow.watcher.clone());
            let mut reader = self.reader;
            let look = move || {
                let armed = watcher.map(|watcher| watcher.arm(reader.directory()));
                io::Result::Ok((reader.read(), armed, reader))
            };
            let (piece, armed, reader) = blocking(look).await?;
            self.reader = reader;
            let piece = piece?;
            if !piece.is_empty() {
                return Ok(Some((piece.into(), self)));
            }
            match (&mut self.follow, armed) {
                (Some(follow), Some(armed)) if !self.ended => {
                    tokio::select! {
                        () = armed.changed() => {}
                        // Read once more: the writer's last output is there now.
                        () = &mut follow.ended => self.ended = true,
                    }
                }
                _ => return Ok(None),
            }
            sleep_until(self.woken + COLLECT).await;
            self.woken = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::{StreamExt, TryStreamExt};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::observe::logs::{LogLimits, Selection, View, bound, rotate};

    const FOLLOW: View = View {
        selection: Selection {
            lines: None,
            since: None,
        },
        timestamps: false,
        follow: true,
    };

    /// The output of a follower of `log`; `end` tells it that the writer has ended.
    fn follow(
        watcher: &Watcher,
        log: &Path,
        end: &CancellationToken,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let reader = LogReader::open(log, &FOLLOW).unwrap();
        let ended = Box::pin(end.clone().cancelled_owned());
        let watcher = watcher.clone();
        stream(reader, Some(Follow { watcher, ended }))
    }

    fn watcher() -> Watcher {
        let watcher = Watcher::open();
        tokio::spawn(watcher.clone().run(CancellationToken::new()));
        watcher
    }

    /// Appends like the runtime: leaves a renamed file at the end of a line.
    struct Writer {
        log: PathBuf,
        file: std::fs::File,
        mid_line: bool,
    }

    impl Writer {
        fn new(log: &Path) -> Self {
            Self {
                log: log.to_owned(),
                file: Self::open(log),
                mid_line: false,
            }
        }

        fn open(log: &Path) -> std::fs::File {
            std::fs::File::options().append(true).create(true).open(log).unwrap()
        }

        fn write(&mut self, mut piece: &[u8]) {
            use std::os::unix::fs::MetadataExt;
            let inode = |metadata: std::fs::Metadata| metadata.ino();
            if std::fs::metadata(&self.log).ok().map(inode) != Some(inode(self.file.metadata().unwrap())) {
                let rest = match piece.iter().position(|byte| *byte == b'\n') {
                    _ if !self.mid_line => 0,
                    Some(newline) => newline + 1,
                    None => piece.len(),
                };
                self.file.write_all(&piece[..rest]).unwrap();
                piece = &piece[rest..];
                if piece.is_empty() {
                    return;
                }
                self.file = Self::open(&self.log);
            }
            self.file.write_all(piece).unwrap();
            self.mid_line = !piece.ends_with(b"\n");
        }
    }

    #[tokio::test]
    async fn a_piece_comes_when_it_is_written_and_the_end_after_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let end = CancellationToken::new();
        let mut pieces = Box::pin(follow(&watcher(), &log, &end));
        let mut writer = Writer::new(&log);
        for n in 0..20 {
            let text = format!("line {n}\n");
            writer.write(text.as_bytes());
            assert_eq!(pieces.next().await.unwrap().unwrap(), text);
        }
        writer.write(b"last\n");
        rotate(&log, 1).unwrap();
        writer.write(b"words");
        end.cancel();
        let rest: Vec<Bytes> = pieces.try_collect().await.unwrap();
        assert_eq!(rest.concat(), b"last\nwords");
    }

    #[tokio::test]
    async fn of_a_log_whose_writer_has_ended_one_gets_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let end = CancellationToken::new();
        end.cancel();
        let none: Vec<Bytes> = follow(&watcher(), &log, &end).try_collect().await.unwrap();
        assert!(none.is_empty());
        std::fs::write(&log, "text\n").unwrap();
        let all: Vec<Bytes> = follow(&watcher(), &log, &end).try_collect().await.unwrap();
        assert_eq!(all.concat(), b"text\n");
    }

    /// Padding of a line to 400 bytes.
    const FILL: &str = match std::str::from_utf8(&[b'.'; 390]) {
        Ok(fill) => fill,
        Err(_) => unreachable!(),
    };

    /// Writes the lines `0`, `1`, … in chunks that do not end at a line, about 100 MB in total.
    fn write_numbers(log: &Path) -> usize {
        let mut writer = Writer::new(log);
        let (mut text, mut lines) = (Vec::new(), 0);
        let mut left = 100 << 20;
        while left > 0 {
            while text.len() < 32 << 10 {
                writeln!(text, "{lines:09}{FILL}").unwrap();
                lines += 1;
            }
            let piece: Vec<u8> = text.drain(..32 << 10).collect();
            left -= piece.len();
            writer.write(&piece);
        }
        writer.write(&text);
        lines
    }

    /// Fails unless the lines are `0`, `1`, …; returns their number.
    async fn count(pieces: impl Stream<Item = io::Result<Bytes>>) -> usize {
        let mut pieces = std::pin::pin!(pieces);
        let (mut begun, mut next) = (Vec::new(), 0);
        while let Some(piece) = pieces.next().await {
            begun.extend_from_slice(&piece.unwrap());
            let whole = begun
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |newline| newline + 1);
            for line in begun.drain(..whole).as_slice().chunks(400) {
                let number: usize = std::str::from_utf8(&line[..9]).unwrap().parse().unwrap();
                assert_eq!((number, line[399]), (next, b'\n'));
                next += 1;
            }
        }
        assert!(begun.is_empty());
        next
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_followers_get_every_line_once_in_order_while_files_are_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("init.log");
        let limits = LogLimits {
            max_bytes: 4 << 20,
            max_files: 100,
        };
        let (end, watcher) = (CancellationToken::new(), watcher());
        let followers = [0, 1].map(|_| tokio::spawn(count(follow(&watcher, &log, &end))));
        let mut stalled = Box::pin(follow(&watcher, &log, &end));
        let (directory, stop) = (dir.path().to_owned(), std::sync::Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let rotation = tokio::task::spawn_blocking(move || {
            while !stopped.load(Ordering::Relaxed) {
                bound(&directory, &limits).unwrap();
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let path = log.clone();
        let lines = tokio::task::spawn_blocking(move || write_numbers(&path)).await.unwrap();
        stop.store(true, Ordering::Relaxed);
        rotation.await.unwrap();
        end.cancel();
        for follower in followers {
            assert_eq!(follower.await.unwrap(), lines);
        }
        assert!(
            log.with_extension("log.10").exists(),
            "the log was rotated again and again"
        );
        // A stalled reader has blocked nobody, and still finds everything.
        let first = stalled.next().await.unwrap();
        assert_eq!(count(futures_util::stream::iter([first]).chain(stalled)).await, lines);
    }
}
