//! The lines of a progress answer: what an operation reports, as JSON.
//!
//! Transfers are reported often; of each blob, a line is written at most every [`PACE`], and always for its last state.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::ops::progress::{ProgressEvent, StepProgress, StepState, Transfer, TransferState};

/// Shortest time between two lines of one blob.
const PACE: Duration = Duration::from_millis(100);
/// The time over which a rate is measured.
const WINDOW: Duration = Duration::from_secs(2);

/// One line of a progress answer, a JSON object. The last line is `result` or `error`. Empty lines have no meaning: they
/// keep the connection open while nothing happens.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ProgressLine {
    /// The operation has entered a phase.
    Phase(PhaseLine),
    /// A layer or another blob has moved on; at most ten lines a second for each blob.
    Transfer(TransferLine),
    /// A step of a build begins or has ended.
    Step(StepLine),
    /// Output of a step of a build.
    Output(OutputLine),
    /// The operation has succeeded. The last line.
    Result(ResultLine),
    /// The operation has failed. The last line.
    Error(ErrorLine),
}

/// A phase of an operation.
#[derive(Debug, Serialize, ToSchema)]
pub struct PhaseLine {
    /// Name of the phase, for example `resolving`, `layers` or `committing`.
    #[schema(value_type = String)]
    phase: &'static str,
}

/// How far the transfer of a blob is.
#[derive(Debug, Serialize, ToSchema)]
pub struct TransferLine {
    /// Digest of the blob; its diff id if it has no other digest yet.
    #[schema(value_type = String)]
    digest: Arc<str>,
    /// `waiting`, `downloading`, `uploading`, `done`, or `present` if it was there already.
    #[schema(value_type = String)]
    state: &'static str,
    /// Bytes transferred so far.
    done: u64,
    /// All bytes; 0 if unknown.
    total: u64,
    /// Bytes per second, over the last two seconds.
    rate: u64,
}

/// A step of a build.
#[derive(Debug, Serialize, ToSchema)]
pub struct StepLine {
    /// Number of the step, from 1.
    step: u32,
    /// Number of steps.
    total: u32,
    /// Name or number of its stage.
    #[schema(value_type = String)]
    stage: Arc<str>,
    /// The instruction, as in the build file.
    #[schema(value_type = String)]
    text: Arc<str>,
    /// `started`, `cached`, `done` or `failed`.
    #[schema(value_type = String)]
    state: &'static str,
}

/// Output of a step.
#[derive(Debug, Serialize, ToSchema)]
pub struct OutputLine {
    /// Number of the step, from 1.
    step: u32,
    /// What it has written, both streams together. What is not UTF-8 is replaced by U+FFFD.
    text: String,
}

/// The result, as in the plain answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResultLine {
    /// What was done, for people.
    message: String,
    /// The result.
    #[schema(value_type = Object)]
    data: Value,
}

/// A failure after the answer has begun.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorLine {
    /// The HTTP status that the plain answer has.
    status: u16,
    /// What was wrong, for programs.
    code: crate::api::Code,
    /// What was wrong, for people.
    message: String,
}

impl ProgressLine {
    pub(super) fn result(message: String, data: Value) -> Self {
        Self::Result(ResultLine { message, data })
    }

    pub(super) fn error(error: ApiError) -> Self {
        Self::Error(ErrorLine {
            status: error.status().as_u16(),
            code: error.code,
            message: error.message,
        })
    }

    /// The line, with its line feed.
    pub(super) fn bytes(&self) -> Bytes {
        // Serializing structs of strings and numbers cannot fail.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line.into()
    }
}

/// Turns events into lines.
#[derive(Debug, Default)]
pub(super) struct Renderer {
    blobs: HashMap<Arc<str>, Blob>,
    /// Ends of outputs that are an incomplete character, by step.
    fragments: HashMap<u32, Vec<u8>>,
}

/// The transfer of one blob.
#[derive(Debug, Default)]
struct Blob {
    /// Times and bytes within [`WINDOW`], and the last ones before it.
    seen: VecDeque<(Instant, u64)>,
    /// When the last line was written, and the state in it.
    written: Option<(Instant, TransferState)>,
    /// What no line has told yet.
    waits: Option<Transfer>,
}

impl Renderer {
    /// The lines for an event.
    pub(super) fn lines(&mut self, event: ProgressEvent, now: Instant) -> Vec<ProgressLine> {
        match event {
            ProgressEvent::Phase(phase) => vec![ProgressLine::Phase(PhaseLine { phase })],
            ProgressEvent::Transfer(transfer) => self.transfer(transfer, now).into_iter().collect(),
            ProgressEvent::Step(step) => self.step(step),
            ProgressEvent::Output { step, bytes } => {
                let text = self.text(step, bytes);
                let line = (!text.is_empty()).then_some(ProgressLine::Output(OutputLine { step, text }));
                line.into_iter().collect()
            }
        }
    }

    /// When [`Renderer::due`] has lines, if nothing happens before.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waiting = self.blobs.values().filter(|blob| blob.waits.is_some());
        waiting.filter_map(|blob| Some(blob.written?.0 + PACE)).min()
    }

    /// Lines of transfers that were held back.
    pub(super) fn due(&mut self, now: Instant) -> Vec<ProgressLine> {
        let due = |blob: &&mut Blob| blob.written.is_none_or(|(at, _)| at + PACE <= now);
        let blobs = self.blobs.values_mut().filter(due);
        blobs.filter_map(|blob| blob.write(now)).collect()
    }

    /// All that was held back.
    pub(super) fn rest(&mut self, now: Instant) -> Vec<ProgressLine> {
        let transfers = self.blobs.values_mut().filter_map(|blob| blob.write(now));
        let steps: Vec<u32> = self.fragments.keys().copied().collect();
        let mut lines: Vec<_> = transfers.collect();
        lines.extend(steps.into_iter().filter_map(|step| self.fragment(step)));
        lines
    }

    fn transfer(&mut self, transfer: Transfer, now: Instant) -> Option<ProgressLine> {
        let blob = self.blobs.entry(transfer.digest.clone()).or_default();
        blob.note(transfer.done, now);
        let held_back = blob
            .written
            .is_some_and(|(at, state)| state == transfer.state && now < at + PACE);
        blob.waits = Some(transfer);
        if held_back { None } else { blob.write(now) }
    }

    fn step(&mut self, step: StepProgress) -> Vec<ProgressLine> {
        let StepProgress {
            step,
            total,
            stage,
            text,
            state,
        } = step;
        let has_ended = state != StepState::Started;
        let rest = if has_ended { self.fragment(step) } else { None };
        let state = match state {
            StepState::Started => "started",
            StepState::Cached => "cached",
            StepState::Done => "done",
            StepState::Failed => "failed",
        };
        let line = ProgressLine::Step(StepLine {
            step,
            total,
            stage,
            text,
            state,
        });
        rest.into_iter().chain([line]).collect()
    }

    /// The output as text; an incomplete character at its end waits for the next one.
    fn text(&mut self, step: u32, bytes: Vec<u8>) -> String {
        let mut all = self.fragments.remove(&step).unwrap_or_default();
        all.extend(bytes);
        let complete = all.len() - incomplete(&all);
        if complete < all.len() {
            self.fragments.insert(step, all.split_off(complete));
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    fn fragment(&mut self, step: u32) -> Option<ProgressLine> {
        let rest = self.fragments.remove(&step)?;
        let text = String::from_utf8_lossy(&rest).into_owned();
        Some(ProgressLine::Output(OutputLine { step, text }))
    }
}

impl Blob {
    fn note(&mut self, done: u64, now: Instant) {
        // A transfer that begins again, from another source.
        if self.seen.back().is_some_and(|(_, before)| *before > done) {
            self.seen.clear();
        }
        while self.seen.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.seen.pop_front();
        }
        // Not each of thousands of pieces: the rate does not need them.
        if let [.., (before, _), (last, _)] = &*self.seen.make_contiguous()
            && *last < *before + PACE
        {
            self.seen.pop_back();
        }
        self.seen.push_back((now, done));
    }

    fn rate(&self) -> u64 {
        let (Some((from, before)), Some((to, after))) = (self.seen.front(), self.seen.back()) else {
            return 0;
        };
        let micros = to.duration_since(*from).as_micros();
        let bytes = u128::from(after.saturating_sub(*before));
        (bytes * 1_000_000)
            .checked_div(micros)
            .map_or(0, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
    }

    fn write(&mut self, now: Instant) -> Option<ProgressLine> {
        let transfer = self.waits.take()?;
        self.written = Some((now, transfer.state));
        let moves = matches!(transfer.state, TransferState::Downloading | TransferState::Uploading);
        Some(ProgressLine::Transfer(TransferLine {
            digest: transfer.digest,
            state: match transfer.state {
                TransferState::Waiting => "waiting",
                TransferState::Downloading => "downloading",
                TransferState::Uploading => "uploading",
                TransferState::Done => "done",
                TransferState::Present => "present",
            },
            done: transfer.done,
            total: transfer.total,
            rate: if moves { self.rate() } else { 0 },
        }))
    }
}

/// How many bytes at the end begin a character that is not complete.
fn incomplete(bytes: &[u8]) -> usize {
    let end = &bytes[bytes.len().saturating_sub(3)..];
    let begins = |from: &usize| {
        std::str::from_utf8(&end[*from..]).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
    };
    (0..end.len()).find(begins).map_or(0, |from| end.len() - from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(digest: &str, state: TransferState, done: u64) -> ProgressEvent {
        ProgressEvent::Transfer(Transfer {
            digest: digest.into(),
            state,
            done,
            total: 1000,
        })
    }

    fn said(lines: &[ProgressLine]) -> Vec<String> {
        lines
            .iter()
            .map(|line| String::from_utf8(line.bytes().to_vec()).unwrap().trim_end().to_owned())
            .collect()
    }

    #[test]
    fn of_each_blob_ten_lines_a_second_and_the_last_state() {
        let (mut renderer, begun) = (Renderer::default(), Instant::now());
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut lines = Vec::new();
        for ms in 0..1000u64 {
            lines.extend(renderer.due(at(ms)));
            lines.extend(renderer.lines(transfer("a", TransferState::Downloading, ms), at(ms)));
        }
        assert!((9..=11).contains(&lines.len()), "{}", lines.len());
        assert!(renderer.next_due().is_some_and(|due| due <= at(1100)));
        // Another blob has its own pace, and another state is told at once.
        assert_eq!(
            renderer.lines(transfer("b", TransferState::Waiting, 0), at(1000)).len(),
            1
        );
        let done = renderer.lines(transfer("a", TransferState::Done, 1000), at(1000));
        assert_eq!(
            said(&done),
            [r#"{"event":"transfer","digest":"a","state":"done","done":1000,"total":1000,"rate":0}"#]
        );
        assert_eq!((renderer.next_due(), renderer.rest(at(1001)).len()), (None, 0));
        // What was held back is told at the end.
        renderer.lines(transfer("b", TransferState::Waiting, 5), at(1001));
        assert_eq!(
            said(&renderer.rest(at(1002))),
            [r#"{"event":"transfer","digest":"b","state":"waiting","done":5,"total":1000,"rate":0}"#]
        );
    }

    #[test]
    fn the_rate_is_that_of_the_last_two_seconds() {
        let (mut blob, begun) = (Blob::default(), Instant::now());
        let at = |ms: u64| begun + Duration::from_millis(ms);
        // 10 bytes a millisecond for five seconds, then one.
        let mut done = 0;
        for ms in 0..5000 {
            blob.note(done, at(ms));
            done += 10;
        }
        let fast = blob.rate();
        assert!((9_900..=10_100).contains(&fast), "{fast}");
        assert!(blob.seen.len() < 30, "{}", blob.seen.len());
        for ms in 5000..8000 {
            blob.note(done, at(ms));
            done += 1;
        }
        let slow = blob.rate();
        assert!((990..=1010).contains(&slow), "{slow}");
        // It begins again.
        blob.note(0, at(8000));
        assert_eq!(blob.rate(), 0);
    }

    #[test]
    fn a_character_in_two_pieces_is_one() {
        let mut renderer = Renderer::default();
        let mut output = |step, bytes: &[u8]| {
            let event = ProgressEvent::Output {
                step,
                bytes: bytes.to_vec(),
            };
            said(&renderer.lines(event, Instant::now())).concat()
        };
        let euro = "€".as_bytes();
        assert_eq!(output(1, &euro[..1]), "");
        assert_eq!(output(2, b"other\n"), r#"{"event":"output","step":2,"text":"other\n"}"#);
        assert_eq!(output(1, &euro[1..2]), "");
        assert_eq!(output(1, &euro[2..]), r#"{"event":"output","step":1,"text":"€"}"#);
        assert_eq!(
            output(1, b"a\xff\xf0\x9f"),
            "{\"event\":\"output\",\"step\":1,\"text\":\"a\u{fffd}\"}"
        );
        assert_eq!(output(1, b"\x98\x80"), r#"{"event":"output","step":1,"text":"😀"}"#);
        assert_eq!(output(1, b"\xe2"), "");
        let step = StepProgress {
            step: 1,
            total: 2,
            stage: "build".into(),
            text: "RUN \"x\"".into(),
            state: StepState::Failed,
        };
        assert_eq!(
            said(&renderer.lines(ProgressEvent::Step(step), Instant::now())),
            [
                "{\"event\":\"output\",\"step\":1,\"text\":\"\u{fffd}\"}",
                r#"{"event":"step","step":1,"total":2,"stage":"build","text":"RUN \"x\"","state":"failed"}"#
            ]
        );
        assert!(renderer.fragments.is_empty());
    }

    #[test]
    fn the_last_line_has_what_the_plain_answer_has() {
        let result = ProgressLine::result("pull completed".into(), serde_json::json!({ "image": "a" }));
        let error = ProgressLine::error(ApiError::new(crate::api::Code::ManifestNotFound, "none"));
        assert_eq!(
            said(&[result, error]),
            [
                r#"{"event":"result","message":"pull completed","data":{"image":"a"}}"#,
                r#"{"event":"error","status":404,"code":"manifest_not_found","message":"none"}"#
            ]
        );
    }
}
