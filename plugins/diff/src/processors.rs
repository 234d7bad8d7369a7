//! Stream processors: programs that turn blobs of other media types (encrypted layers) into ones that are known. Config
//! `stream_processors`; containerd: core/diff/stream.go.
//!
//! A program gets the blob on stdin, gives its result on stdout, and reads its payload (a protobuf Any: keys) from
//! descriptor 3. Its environment is the daemon's, the configured one and `STREAM_PROCESSOR_MEDIATYPE`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use corten_core::{Any, Error, Kind, Result};
use prost::Message;
use serde::Deserialize;

use crate::media;

const MEDIA_TYPE: &str = "STREAM_PROCESSOR_MEDIATYPE";
/// Programs in a row at most: more are a config that leads in circles.
const LONGEST: usize = 16;
/// Bytes of a program's complaints that are kept.
const COMPLAINTS: u64 = 64 << 10;

/// One entry of `[stream_processors]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Processor {
    /// Media types that it takes.
    pub accepts: Vec<String>,
    /// The media type that it gives.
    pub returns: String,
    /// Path or name of the program.
    pub path: String,
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
}

/// All processors by id.
#[derive(Debug, Clone, Default)]
pub struct Processors(Arc<BTreeMap<String, Processor>>);

/// A processor with its id and the media type that it gets.
type Step<'a> = (&'a str, &'a Processor, String);

// === impl Processors ===

impl Processors {
    /// Those of a config.
    pub fn new(all: BTreeMap<String, Processor>) -> Self {
        Self(Arc::new(all))
    }

    /// The programs that lead from `media_type` to a layer, and the type that they end in.
    ///
    /// # Errors
    /// NotImplemented when none do: another differ may know it.
    pub(crate) fn chain(&self, media_type: &str) -> Result<(Vec<Step<'_>>, String)> {
        let (mut steps, mut at) = (Vec::new(), media_type.to_owned());
        // Configured ones come before what we know ourselves.
        while let Some((id, p)) = self.0.iter().find(|(_, p)| p.accepts.contains(&at)) {
            let next = p.returns.clone();
            steps.push((id.as_str(), p, std::mem::replace(&mut at, next)));
            if at == media::LAYER {
                return Ok((steps, at));
            }
            if steps.len() == LONGEST {
                return Err(Error::invalid(format!(
                    "stream processors of {media_type} lead in circles"
                )));
            }
        }
        media::check_applicable(&at)?;
        Ok((steps, at))
    }
}

/// Programs at work. Dropping it kills what is left of them.
#[derive(Debug, Default)]
pub(crate) struct Running {
    children: Vec<(String, Child, JoinHandle<Vec<u8>>)>,
    feeder: Option<JoinHandle<io::Result<()>>>,
}

/// Sends `blob` through the programs; the reader gives what the last one says.
pub(crate) fn run(
    steps: &[Step<'_>],
    blob: impl Read + Send + 'static,
    payloads: &BTreeMap<String, Any>,
) -> Result<(Box<dyn Read + Send>, Running)> {
    let mut running = Running::default();
    let mut blob = Some(blob);
    let mut output: Option<std::process::ChildStdout> = None;
    for (id, p, media_type) in steps {
        let mut command = Command::new(&p.path);
        command
            .args(&p.args)
            .envs(p.env.iter().filter_map(|e| e.split_once('=')))
            .env(MEDIA_TYPE, media_type)
            .stdin(output.take().map_or_else(Stdio::piped, Stdio::from))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let payload = payloads.get(*id).map(|p| p.encode_to_vec());
        let writer = payload.is_some().then(|| pass_payload(&mut command));
        let spawned = command.spawn();
        // Its end of the payload's pipe goes with it.
        drop(command);
        let mut child =
            spawned.map_err(|e| Error::new(Kind::Unknown, format!("fork/exec {}: {e}", p.path)))?;
        if let (Some(payload), Some(writer)) = (payload, writer) {
            let mut writer = writer?;
            // One that does not read it closes the pipe at its end.
            std::thread::spawn(move || writer.write_all(&payload));
        }
        if let (Some(mut stdin), Some(mut blob)) = (child.stdin.take(), blob.take()) {
            running.feeder = Some(std::thread::spawn(move || {
                match io::copy(&mut blob, &mut stdin) {
                    // It may have heard enough; if not, it fails itself.
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                    done => done.map(|_| ()),
                }
            }));
        }
        output = child.stdout.take();
        let complaints = child.stderr.take();
        let complaints = std::thread::spawn(move || {
            let mut said = Vec::new();
            if let Some(mut stderr) = complaints {
                // What was said until an error is as much as there is.
                let _ = (&mut stderr).take(COMPLAINTS).read_to_end(&mut said);
                let _ = io::copy(&mut stderr, &mut io::sink());
            }
            said
        });
        running.children.push((p.path.clone(), child, complaints));
    }
    match (output, blob) {
        (Some(output), _) => Ok((Box::new(output), running)),
        (None, Some(blob)) => Ok((Box::new(blob), running)),
        (None, None) => Err(Error::internal("a stream processor without output")),
    }
}

fn pass_payload(command: &mut Command) -> Result<File> {
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    corten_sys::payload::pass(command, read);
    Ok(File::from(write))
}

impl Running {
    /// Waits for all when their output made sense. When it did not, a program that failed is the cause.
    ///
    /// # Errors
    /// Theirs, or that of `outcome`.
    pub(crate) fn finish_after<T>(mut self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Ok(done) => self.finish().map(|()| done),
            Err(e) => match self.children.iter_mut().find_map(|c| failed(&mut c.1)) {
                Some(_) => Err(self.finish().err().unwrap_or(e)),
                None => Err(e),
            },
        }
    }

    /// Waits for all, whose output was read to its end.
    ///
    /// # Errors
    /// What the first failed one said; a failed read of the blob.
    pub(crate) fn finish(mut self) -> Result<()> {
        for (program, mut child, complaints) in std::mem::take(&mut self.children) {
            let status = child.wait()?;
            let said = complaints.join().unwrap_or_default();
            if !status.success() {
                let said = String::from_utf8_lossy(&said).trim().to_owned();
                return Err(Error::new(
                    Kind::Unknown,
                    format!("stream processor {program}: {said}: {status}"),
                ));
            }
        }
        match self.feeder.take().map(JoinHandle::join) {
            Some(Ok(done)) => Ok(done?),
            Some(Err(_)) => Err(Error::internal("reading the blob panicked")),
            None => Ok(()),
        }
    }
}

/// The status of a child that has ended badly.
fn failed(child: &mut Child) -> Option<std::process::ExitStatus> {
    child.try_wait().ok().flatten().filter(|s| !s.success())
}

impl Drop for Running {
    fn drop(&mut self) {
        for (_, child, _) in &mut self.children {
            // Ended already is fine.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENCRYPTED: &str = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn processor(accepts: &str, returns: &str, script: &str) -> Processor {
        Processor {
            accepts: vec![accepts.into()],
            returns: returns.into(),
            path: "sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec!["GREETING=hello".into()],
        }
    }

    fn processors(all: &[(&str, Processor)]) -> Processors {
        Processors::new(
            all.iter()
                .map(|(id, p)| ((*id).into(), p.clone()))
                .collect(),
        )
    }

    fn output(p: &Processors, media_type: &str, blob: &'static [u8]) -> Result<String> {
        let payload = Any {
            type_url: "keys".into(),
            value: b"k".to_vec(),
        };
        let payloads = BTreeMap::from([("b".to_owned(), payload)]);
        let (steps, _) = p.chain(media_type)?;
        let (mut reader, running) = run(&steps, blob, &payloads)?;
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        running.finish()?;
        Ok(text)
    }

    #[test]
    fn programs_follow_each_other_up_to_a_layer() {
        let p = processors(&[
            (
                "a",
                processor(
                    "a/x",
                    "a/y",
                    "cat; printf ' %s' \"$STREAM_PROCESSOR_MEDIATYPE\"",
                ),
            ),
            (
                "b",
                processor(
                    "a/y",
                    GZIP,
                    "cat; printf ' %s ' \"$GREETING\"; cat <&3 | tr -cd a-z",
                ),
            ),
        ]);
        let (steps, last) = p.chain("a/x").unwrap();
        assert_eq!((steps.len(), last.as_str()), (2, GZIP));
        assert_eq!(output(&p, "a/x", b"blob").unwrap(), "blob a/x hello keysk");
        assert_eq!(p.chain(GZIP).unwrap().0.len(), 0);
        assert_eq!(p.chain(ENCRYPTED).unwrap_err().kind(), Kind::NotImplemented);
    }

    #[test]
    fn what_goes_wrong_is_told() {
        let p = processors(&[
            ("circle", processor("a/a", "a/a", "cat")),
            (
                "fail",
                processor("a/fail", GZIP, "cat >/dev/null; echo no key >&2; exit 3"),
            ),
            (
                "absent",
                Processor {
                    path: "/nonexistent/decoder".into(),
                    ..processor("a/absent", GZIP, "")
                },
            ),
            ("early", processor("a/early", GZIP, "exit 0")),
        ]);
        assert_eq!(p.chain("a/a").unwrap_err().kind(), Kind::InvalidArgument);
        let e = output(&p, "a/fail", b"x").unwrap_err().to_string();
        assert!(e.contains("no key") && e.contains("exit status: 3"), "{e}");
        let e = output(&p, "a/absent", b"x").unwrap_err().to_string();
        assert!(e.contains("/nonexistent/decoder"), "{e}");
        static LARGE: [u8; 1 << 20] = [0; 1 << 20];
        assert_eq!(output(&p, "a/early", &LARGE).unwrap(), "");
    }
}
