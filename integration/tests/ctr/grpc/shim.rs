//! A shim that speaks gRPC: one task, which is a process of the machine.
//!
//! ```text
//! start    spawns `serve`, waits for its word, prints where it serves
//! serve    containerd.task.v3.Task on a socket, until Shutdown
//! delete   kills what a dead `serve` left, prints its exit
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

use corten_protos::containerd::runtime::bootstrap::v1::BootstrapParams;
use corten_protos::containerd::task::v3::task_server::{Task, TaskServer};
use corten_protos::containerd::task::v3::{
    CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, WaitRequest,
    WaitResponse,
};
use corten_protos::containerd::v1::types::{ProcessInfo, Status as TaskStatus};
use corten_protos::google::protobuf::{Empty, Timestamp};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use tonic::{Request, Response, Status, async_trait};

/// What this program is called with when it is to be the shim.
pub(crate) const WORD: &str = "serve-tasks-over-grpc";
/// The file in the bundle that has the pid of what runs.
const PID_FILE: &str = "init.pid";

/// Status and time of an end.
type Ended = Option<(u32, Timestamp)>;

struct Shim {
    created: Mutex<Option<CreateTaskRequest>>,
    pid: Mutex<u32>,
    ended: Arc<watch::Sender<Ended>>,
    stop: Arc<Notify>,
}

/// Does what the daemon asked the binary for.
pub(crate) fn main(args: &[String]) -> ExitCode {
    match args.last().map(String::as_str) {
        Some("start") => start(),
        Some("serve") => serve(&args[0]),
        Some("delete") => delete(),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// The parent of a process.
pub(crate) fn parent(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[expect(clippy::zombie_processes, reason = "the server outlives this program")]
fn start() {
    let mut params = Vec::new();
    std::io::stdin().read_to_end(&mut params).unwrap();
    let params = BootstrapParams::decode(params.as_slice()).unwrap();
    let dir = PathBuf::from(params.socket_dir.unwrap());
    std::fs::create_dir_all(&dir).unwrap();
    let socket = dir.join(format!("grpc-{}", std::process::id()));
    let mut server = Command::new(std::env::current_exe().unwrap())
        .arg(WORD)
        .arg(&socket)
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut word = [0; 1];
    server.stdout.take().unwrap().read_exact(&mut word).unwrap();
    println!(
        r#"{{"version":3,"address":"{}","protocol":"grpc"}}"#,
        socket.display()
    );
}

fn delete() {
    let pid = std::fs::read_to_string(PID_FILE).ok();
    let pid: Option<i32> = pid.and_then(|p| p.parse().ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
    let answer = DeleteResponse {
        pid: pid.unwrap_or_default().cast_unsigned(),
        exit_status: 137,
        exited_at: Some(now()),
    };
    std::io::stdout()
        .write_all(&answer.encode_to_vec())
        .unwrap();
}

fn serve(socket: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let stop = Arc::new(Notify::new());
    let shim = Shim {
        created: Mutex::default(),
        pid: Mutex::default(),
        ended: Arc::new(watch::channel(None).0),
        stop: stop.clone(),
    };
    runtime.block_on(async {
        let listener = UnixListener::bind(socket).unwrap();
        // The end of the pipe is no word: whoever waits must know that the socket is there.
        std::io::stdout().write_all(b"!").unwrap();
        std::io::stdout().flush().unwrap();
        let incoming = futures::stream::unfold(listener, |listener| async {
            Some((listener.accept().await.map(|(s, _)| s), listener))
        });
        let served = tonic::transport::Server::builder()
            .add_service(TaskServer::new(shim))
            .serve_with_incoming(incoming);
        tokio::select! {
            served = served => served.unwrap(),
            () = stop.notified() => {}
        }
    });
    let _ = std::fs::remove_file(socket);
}

fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

fn answer<T>(message: T) -> Result<Response<T>, Status> {
    Ok(Response::new(message))
}

// === impl Shim ===

impl Shim {
    fn pid(&self) -> u32 {
        *self.pid.lock().unwrap()
    }

    /// Runs what config.json says, on the machine, with the task's output.
    fn run(&self) -> u32 {
        let task = self.created.lock().unwrap().clone().unwrap();
        let spec = std::fs::read(Path::new(&task.bundle).join("config.json")).unwrap();
        let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
        let argv: Vec<String> = serde_json::from_value(spec["process"]["args"].clone()).unwrap();
        let output = |path: &str| match path {
            "" => Stdio::null(),
            path => File::options().write(true).open(path).unwrap().into(),
        };
        let mut child = Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(Stdio::null())
            .stdout(output(&task.stdout))
            .stderr(output(&task.stderr))
            .spawn()
            .unwrap();
        let pid = child.id();
        *self.pid.lock().unwrap() = pid;
        std::fs::write(Path::new(&task.bundle).join(PID_FILE), pid.to_string()).unwrap();
        let ended = self.ended.clone();
        std::thread::spawn(move || {
            let status = child.wait().unwrap();
            let code = status
                .code()
                .or_else(|| status.signal().map(|s| 128 + s))
                .unwrap_or(255);
            ended.send_replace(Some((code.cast_unsigned(), now())));
        });
        pid
    }

    fn ended(&self) -> Ended {
        *self.ended.borrow()
    }
}

#[async_trait]
impl Task for Shim {
    async fn create(
        &self,
        r: Request<CreateTaskRequest>,
    ) -> Result<Response<CreateTaskResponse>, Status> {
        *self.created.lock().unwrap() = Some(r.into_inner());
        let pid = std::process::id();
        *self.pid.lock().unwrap() = pid;
        answer(CreateTaskResponse { pid })
    }

    async fn start(&self, _: Request<StartRequest>) -> Result<Response<StartResponse>, Status> {
        answer(StartResponse { pid: self.run() })
    }

    async fn connect(
        &self,
        _: Request<ConnectRequest>,
    ) -> Result<Response<ConnectResponse>, Status> {
        answer(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.pid(),
            version: "3".into(),
        })
    }

    async fn pids(&self, _: Request<PidsRequest>) -> Result<Response<PidsResponse>, Status> {
        let process = ProcessInfo {
            pid: self.pid(),
            info: None,
        };
        answer(PidsResponse {
            processes: vec![process],
        })
    }

    async fn state(&self, r: Request<StateRequest>) -> Result<Response<StateResponse>, Status> {
        let ended = self.ended();
        let status = match (ended, self.pid() == std::process::id()) {
            (Some(_), _) => TaskStatus::Stopped,
            (None, true) => TaskStatus::Created,
            (None, false) => TaskStatus::Running,
        };
        answer(StateResponse {
            id: r.into_inner().id,
            pid: self.pid(),
            status: status.into(),
            exit_status: ended.map_or(0, |(code, _)| code),
            exited_at: ended.map(|(_, at)| at),
            ..Default::default()
        })
    }

    async fn kill(&self, r: Request<KillRequest>) -> Result<Response<Empty>, Status> {
        let signal = r.into_inner().signal.cast_signed();
        let signal = Signal::from_named_raw(signal).unwrap_or(Signal::KILL);
        let pid = Pid::from_raw(self.pid().cast_signed()).unwrap();
        match kill_process(pid, signal) {
            Ok(()) => answer(Empty::default()),
            Err(e) => Err(Status::not_found(format!("kill: {e}"))),
        }
    }

    async fn wait(&self, _: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let mut ended = self.ended.subscribe();
        let ended = *ended.wait_for(Option::is_some).await.unwrap();
        let (exit_status, at) = ended.unwrap();
        answer(WaitResponse {
            exit_status,
            exited_at: Some(at),
        })
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let (exit_status, at) = self.ended().unwrap_or_else(|| (0, now()));
        answer(DeleteResponse {
            pid: self.pid(),
            exit_status,
            exited_at: Some(at),
        })
    }

    async fn pause(&self, _: Request<PauseRequest>) -> Result<Response<Empty>, Status> {
        Err(Status::failed_precondition("nobody pauses here"))
    }

    async fn close_io(&self, _: Request<CloseIoRequest>) -> Result<Response<Empty>, Status> {
        answer(Empty::default())
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Result<Response<Empty>, Status> {
        // The connection goes with the program: that is an answer too.
        self.stop.notify_one();
        answer(Empty::default())
    }
}
