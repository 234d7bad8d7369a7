//! Owns the files this shim keeps in a bundle: config.json is read, the others are written for `delete` and for people.
//!
//! | file | content |
//! |---|---|
//! | `config.json` | the daemon's; read again for each exec, so that the spec needs no memory in between. Of a sandbox: ours |
//! | `init.pid`, `<exec>.pid` | decimal pid |
//! | `exit.json` | Go JSON `{"Timestamp","Pid","Status"}` of init, 0600, atomic |
//! | `options.json`, `runtime` | the runtime options; the name of another runtime's binary, if any |
//! | `poststop` | exists once the poststop hooks have been started |

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use corten_oci::Spec;
use corten_protos::google::protobuf::Timestamp;
use corten_protos::time;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::options::Options;

const CONFIG: &str = "config.json";
const EXIT: &str = "exit.json";
const INIT_PID: &str = "init.pid";
const OPTIONS: &str = "options.json";
const POSTSTOP: &str = "poststop";

/// How a process ended, as containerd reports it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Exit {
    pub(crate) pid: u32,
    pub(crate) status: u32,
    pub(crate) at: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ExitRecord {
    timestamp: String,
    pid: i64,
    status: i64,
}

pub(crate) fn read_spec(bundle: &Path) -> Result<Spec> {
    let text =
        fs::read(bundle.join(CONFIG)).context(format!("read {}", bundle.join(CONFIG).display()))?;
    Ok(Spec::parse(&text)?)
}

/// The document as it is; a sandbox may have none.
pub(crate) fn read_config(bundle: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(bundle.join(CONFIG)) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(format!("read {}", bundle.join(CONFIG).display())),
    }
}

/// The document of a sandbox, which the daemon does not write.
pub(crate) fn write_config(bundle: &Path, text: &[u8]) -> Result<()> {
    replace(&bundle.join(CONFIG), text).context("write config.json")
}

pub(crate) fn write_options(bundle: &Path, options: &Options) -> Result<()> {
    let text = serde_json::to_vec(options)
        .map_err(|e| Error::unknown(format!("encode options.json: {e}")))?;
    replace(&bundle.join(OPTIONS), &text).context("write options.json")?;
    replace(&bundle.join("runtime"), options.binary_name.as_bytes()).context("write runtime")
}

/// The options of an earlier Create; none were written by a Create that never came.
pub(crate) fn read_options(bundle: &Path) -> Options {
    fs::read(bundle.join(OPTIONS))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// `exec` is empty for init.
pub(crate) fn write_pid(bundle: &Path, exec: &str, pid: i32) -> Result<()> {
    let name = pid_file(exec);
    replace(&bundle.join(&name), pid.to_string().as_bytes()).context(format!("write {name}"))
}

pub(crate) fn remove_pid(bundle: &Path, exec: &str) {
    // Left behind it misleads nobody: the bundle is about to go.
    let _ = fs::remove_file(bundle.join(pid_file(exec)));
}

pub(crate) fn read_init_pid(bundle: &Path) -> Option<u32> {
    let text = fs::read_to_string(bundle.join(INIT_PID)).ok()?;
    text.trim().parse().ok()
}

pub(crate) fn write_exit(bundle: &Path, exit: &Exit) -> Result<()> {
    let record = ExitRecord {
        timestamp: time::rfc3339(&exit.at),
        pid: exit.pid.into(),
        status: exit.status.into(),
    };
    let text = serde_json::to_vec(&record)
        .map_err(|e| Error::unknown(format!("encode exit.json: {e}")))?;
    replace(&bundle.join(EXIT), &text).context("write exit.json")
}

/// The recorded exit; a record that makes no sense counts as none.
pub(crate) fn read_exit(bundle: &Path) -> Option<Exit> {
    let record: ExitRecord = serde_json::from_slice(&fs::read(bundle.join(EXIT)).ok()?).ok()?;
    let at = time::parse_rfc3339(&record.timestamp).filter(|t| *t != time::GO_ZERO)?;
    Some(Exit {
        pid: u32::try_from(record.pid).ok().filter(|pid| *pid > 0)?,
        status: u32::try_from(record.status).ok()?,
        at,
    })
}

/// Claims the poststop hooks of a container: true for the one caller who is to run them.
pub(crate) fn claim_poststop(bundle: &Path) -> bool {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(bundle.join(POSTSTOP))
        .is_ok()
}

fn pid_file(exec: &str) -> String {
    match exec {
        "" => INIT_PID.to_owned(),
        // An exec of that name must not pass for the container's first process.
        "init" => "init.exec.pid".to_owned(),
        exec => format!("{exec}.pid"),
    }
}

/// Writes a new file beside the old one and renames it over: readers see all or nothing.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?
        .write_all(bytes)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_come_back_and_nonsense_does_not() {
        let dir = std::env::temp_dir().join(format!("corten-bundle-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(read_exit(&dir), None);
        let exit = Exit {
            pid: 7,
            status: 137,
            at: Timestamp {
                seconds: 1_795_257_600,
                nanos: 5,
            },
        };
        write_exit(&dir, &exit).unwrap();
        assert_eq!(read_exit(&dir), Some(exit));
        // Written by Go with a local offset.
        for (text, good) in [
            (
                r#"{"Timestamp":"2026-11-21T12:40:00.5+02:00","Pid":7,"Status":0}"#,
                true,
            ),
            (
                r#"{"Timestamp":"0001-01-01T00:00:00Z","Pid":7,"Status":0}"#,
                false,
            ),
            (
                r#"{"Timestamp":"2026-11-21T12:40:00Z","Pid":0,"Status":0}"#,
                false,
            ),
            (
                r#"{"Timestamp":"2026-11-21T12:40:00Z","Pid":7,"Status":-1}"#,
                false,
            ),
            ("{", false),
        ] {
            fs::write(dir.join(EXIT), text).unwrap();
            assert_eq!(read_exit(&dir).is_some(), good, "{text}");
        }
        assert!(claim_poststop(&dir) && !claim_poststop(&dir));
        write_pid(&dir, "", 7).unwrap();
        write_pid(&dir, "init", 8).unwrap();
        remove_pid(&dir, "init");
        assert_eq!(read_init_pid(&dir), Some(7));
        fs::remove_dir_all(dir).unwrap();
    }
}
