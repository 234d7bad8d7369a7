//! Every limit of the CRI in one table, with the constant that it is and the test that goes to it and one beyond. Tests
//! of the program `tests/cri` of the integration crate are written `cri:`; those without a file are unit tests beside the
//! constant.
//!
//! | what | limit | constant or key | tried at the limit and beyond by |
//! |---|---|---|---|
//! | **messages** | | | |
//! | a message, sent or received | 16 MiB | `max_recv_message_size`, `max_send_message_size` of `[grpc]` | `cri: limits::a_message` |
//! | items of one message of StreamPodSandboxes | 5,000 | [`pods::list::BATCH`] | a unit test |
//! | items of one message of StreamContainers | 5,000 | [`containers::list::BATCH`] | a unit test |
//! | items, bytes of one message of the other list streams | 5,000, 8 MiB | [`MAX_ITEMS`], [`MAX_BYTES`] | a unit test |
//! | pods or containers asked for stats at a time | 16 | [`stats::WIDTH`] | |
//! | events that wait for one reader | 1,024; then it is let go | [`events::MAX_UNREAD`] | a unit test |
//! | events that wait while nobody reads | 256, 5 min | [`events::MAX_HELD`] | a unit test |
//! | key and value of a label | 4,096 bytes; of an image: left out | `corten_core::labels::MAX_SIZE` | `cri: limits::a_label`, a unit test |
//! | **commands** | | | |
//! | bytes that ExecSync keeps of each stream | 16 MiB; the rest is read and lost | [`MAX_OUTPUT`] | `cri: limits::the_output_of_a_command` |
//! | bytes of both that it answers | 16 MiB - 64: a message that clients take | [`MAX_ANSWER`] | `cri: limits::the_output_of_a_command`, a unit test |
//! | the end of a process that was killed after its time-out | 5 s; the answer does not wait longer | | |
//! | streams held open after a process' end | 0: as long as they are | `drain_exec_sync_io_timeout` | `cri: hostile_messages::commands_that_leave_a_child` |
//! | **logs** | | | |
//! | a line | 16,384 bytes; a longer one is cut; not positive: none | `max_container_log_line_size` | `cri: limits::the_line_of_a_log`, unit tests of [`logs::lines`] and of the shim |
//! | a file | not positive: none; else it is renamed to `<name>.1` first | `max_container_log_size` | a unit test of [`logs::file`](mod@crate::logs::file) |
//! | an attached client that takes nothing | 16 parts of 32 KiB, then 10 s; then it is left | | a unit test |
//! | output held open after a container's end | 10 s | | |
//! | **users and files** | | | |
//! | a container's /etc/passwd and /etc/group | 10 MiB, regular files only | [`user::MAX_FILE`] | `cri: limits::the_users_of_an_image`, a unit test |
//! | ids of users and groups in images and passwd | 0 to 2^31-1 | | `cri: hostile_images::user_strings_that_overflow_to_root`, a unit test |
//! | a seccomp profile, CDI or class file of the node | 10 MiB, regular files only | [`file::MAX_FILE`] | unit tests |
//! | folders below a folder of devices | 16 deep | | a unit test |
//! | **images** | | | |
//! | a manifest or index | 4 MiB | [`MAX_DOCUMENT`] | `cri: limits::a_manifest`, a unit test |
//! | an image's configuration | 8 MiB | [`MAX_CONFIG`] | a unit test |
//! | indexes in indexes | 8 | | a unit test |
//! | repository name, tag | 255, 128 bytes | | a unit test |
//! | the `auth` field of a request | 64 KiB | | a unit test |
//! | a pull without a byte | 5 min | `image_pull_progress_timeout` | a unit test |
//! | **streaming server** | | | |
//! | tokens handed out and not used | 1,000; more is ResourceExhausted | [`MAX_TOKENS`] | `cri: limits::unused_tokens`, a unit test |
//! | life of a token | 1 min, one use | [`LIFE`] | `cri: streams::uses_a_token_once`, a unit test |
//! | randomness of a token | 122 bits | | |
//! | connections | 4,096; more wait in the backlog | [`MAX_CONNECTIONS`] | a unit test |
//! | an HTTP request's head | 64 KiB | [`MAX_HEAD`] | `cri: limits::the_head_of_a_request`, a unit test |
//! | the time for a head, for a TLS handshake | 10 s each | | |
//! | a connection without a byte in either direction | 4 h | `stream_idle_timeout` | a unit test |
//! | a client's time to make its streams | 30 s | [`Config::creation`] | a unit test |
//! | a SPDY control frame | 64 KiB | [`MAX_CONTROL`] | a unit test |
//! | a SPDY header block, inflated | 64 KiB | [`MAX_BLOCK`] | a unit test |
//! | headers of a SPDY stream | 100 | [`MAX_HEADERS`] | a unit test |
//! | a SPDY data frame | as the protocol, 16 MiB; taken in parts, never held | | |
//! | streams of a SPDY connection at a time | 1,000; more are refused | [`MAX_STREAMS`] | a unit test |
//! | a WebSocket message | 1 MiB | [`MAX_MESSAGE`] | a unit test |
//! | bytes of a stream held in each direction | 64 KiB | [`BUFFER`] | |
//! | a terminal's size | 4 KiB of JSON | [`MAX_RESIZE`] | a unit test |
//! | a connection into a pod | 10 s for each family | | |
//! | last words of a client whose port's other side ended | 1 s | | |
//! | **repair** | | | |
//! | an undo of a failed RunPodSandbox | 1 min each | | |
//! | loading one container after a restart | 10 s, 32 at a time; then it is unknown | | |
//! | one try to be rid of an ended container | 20 s, then again after 1 s to 5 min | | |
//!
//! Those of networks (a plugin's output and time, files, cached results) are in the docs of `corten_cni`.
//!
//! [`pods::list::BATCH`]: crate::pods::list::BATCH
//! [`containers::list::BATCH`]: crate::containers::list::BATCH
//! [`MAX_ITEMS`]: crate::stats::batches::MAX_ITEMS
//! [`MAX_BYTES`]: crate::stats::batches::MAX_BYTES
//! [`stats::WIDTH`]: crate::stats::WIDTH
//! [`events::MAX_UNREAD`]: crate::events::MAX_UNREAD
//! [`events::MAX_HELD`]: crate::events::MAX_HELD
//! [`MAX_OUTPUT`]: crate::containers::exec::MAX_OUTPUT
//! [`MAX_ANSWER`]: crate::containers::exec::MAX_ANSWER
//! [`logs::lines`]: crate::logs::lines
//! [`user::MAX_FILE`]: crate::spec::user::MAX_FILE
//! [`file::MAX_FILE`]: crate::spec::file::MAX_FILE
//! [`MAX_DOCUMENT`]: crate::images::record::MAX_DOCUMENT
//! [`MAX_CONFIG`]: crate::images::record::MAX_CONFIG
//! [`MAX_TOKENS`]: crate::streaming::tokens::MAX_TOKENS
//! [`LIFE`]: crate::streaming::tokens::LIFE
//! [`MAX_CONNECTIONS`]: crate::streaming::server::MAX_CONNECTIONS
//! [`MAX_HEAD`]: crate::streaming::server::MAX_HEAD
//! [`Config::creation`]: crate::streaming::Config::creation
//! [`MAX_CONTROL`]: crate::streaming::spdy::MAX_CONTROL
//! [`MAX_BLOCK`]: crate::streaming::spdy::MAX_BLOCK
//! [`MAX_HEADERS`]: crate::streaming::spdy::MAX_HEADERS
//! [`MAX_STREAMS`]: crate::streaming::spdy::MAX_STREAMS
//! [`MAX_MESSAGE`]: crate::streaming::websocket::MAX_MESSAGE
//! [`BUFFER`]: crate::streaming::pipe::BUFFER
//! [`MAX_RESIZE`]: crate::streaming::remote::MAX_RESIZE
