//! Content.Write: one client writes one ingest.
//!
//! ```text
//!   first message (ref) --open--> [open] --STAT-----------> status, stays open
//!                                  |   \--WRITE @offset--> appended, stays open
//!                                  |     WRITE @0 after data: starts over; @elsewhere: OutOfRange
//!                                  \--COMMIT-------------> blob; the stream ends
//!   end of the client's messages: the stream ends, the ingest stays for a later resume
//! ```
//! Every message may also carry the expected digest and the total. A digest that exists already ends the stream with
//! AlreadyExists and removes the ingest. Answers carry what earlier ones told (times, total), as containerd's do.
//!
//! The whole session is the answer stream itself: it moves only while the client reads, and a client that goes away
//! drops it, and with it the writer's lock.

use std::sync::Arc;

use corten_core::content::{Content, Writer, WriterOptions};
use corten_core::{Context, Digest, Error, Kind, Result, Scope};
use corten_protos::containerd::services::content::v1::{
    WriteAction, WriteContentRequest, WriteContentResponse,
};
use futures::{Stream, StreamExt};
use tonic::Status;

use super::signed;
use crate::{Streamed, stamp};

/// A session and where its messages come from.
struct Session<S> {
    store: Arc<dyn Content>,
    scope: Scope,
    requests: S,
    state: State,
}

enum State {
    Unopened,
    Open(Open),
    Ended,
}

/// An open ingest.
struct Open {
    writer: Box<dyn Writer>,
    r#ref: String,
    total: u64,
    expected: Option<Digest>,
    /// The last answer; the next one begins as its copy.
    answer: WriteContentResponse,
}

/// The answers to `requests`.
pub(super) fn session<S>(
    store: Arc<dyn Content>,
    scope: Scope,
    requests: S,
) -> Streamed<WriteContentResponse>
where
    S: Stream<Item = Result<WriteContentRequest, Status>> + Send + Unpin + 'static,
{
    let session = Session {
        store,
        scope,
        requests,
        state: State::Unopened,
    };
    Box::pin(futures::stream::try_unfold(
        session,
        |mut session| async move {
            let answer = session.step().await?;
            Ok(answer.map(|a| (a, session)))
        },
    ))
}

// === impl Session ===

impl<S> Session<S>
where
    S: Stream<Item = Result<WriteContentRequest, Status>> + Send + Unpin,
{
    /// Handles the next message; `None` ends the stream.
    async fn step(&mut self) -> Result<Option<WriteContentResponse>, Status> {
        if matches!(self.state, State::Ended) {
            return Ok(None);
        }
        let Some(request) = self.requests.next().await.transpose()? else {
            return Ok(None);
        };
        if matches!(self.state, State::Unopened) {
            self.state = State::Open(open(&self.store, &self.scope, &request).await?);
        }
        let action = action(&request)?;
        if let Some(expected) = expected(&request)?
            && self
                .store
                .info(&self.scope.namespace, &expected)
                .await
                .is_ok()
        {
            return Err(self.already_there(&expected).await)?;
        }
        let State::Open(open) = &mut self.state else {
            return Ok(None);
        };
        let answer = open.handle(action, request).await?;
        if action == WriteAction::Commit {
            self.state = State::Ended;
        }
        Ok(Some(answer))
    }

    /// Gives up the ingest: the blob exists.
    async fn already_there(&mut self, digest: &Digest) -> Error {
        if let State::Open(open) = std::mem::replace(&mut self.state, State::Ended) {
            let name = open.r#ref.clone();
            // The lock goes with the writer; only then can the ingest be removed.
            drop(open);
            if let Err(error) = self.store.abort(&self.scope, &name).await {
                tracing::error!(%error, r#ref = %name, "abort write");
            }
        }
        Error::new(
            Kind::AlreadyExists,
            format!("blob with expected digest {digest} exists"),
        )
    }
}

// === impl Open ===

impl Open {
    async fn handle(
        &mut self,
        action: WriteAction,
        request: WriteContentRequest,
    ) -> Result<WriteContentResponse> {
        let status = self.writer.status();
        self.answer.set_action(action);
        self.answer.offset = signed(status.offset);
        if let Some(digest) = expected(&request)? {
            self.expected = Some(digest);
        }
        if let Ok(total @ 1..) = u64::try_from(request.total) {
            self.total = total;
        }
        if action == WriteAction::Stat {
            self.answer.started_at = stamp(status.started_at);
            self.answer.updated_at = stamp(status.updated_at);
            self.answer.total = signed(self.total);
        } else {
            self.append(status.offset, &request).await?;
        }
        if action == WriteAction::Commit {
            self.writer
                .commit(self.total, self.expected.clone(), request.labels)
                .await?;
        }
        self.answer.digest = self.writer.digest().to_string();
        Ok(self.answer.clone())
    }

    async fn append(&mut self, current: u64, request: &WriteContentRequest) -> Result<()> {
        if request.offset > 0 && request.offset != signed(current) {
            return Err(Error::new(
                Kind::OutOfRange,
                format!(
                    "write @{} must occur at current offset {current}",
                    request.offset
                ),
            ));
        }
        if request.offset == 0 && current > 0 {
            self.writer.truncate(0).await.context("truncate failed")?;
            self.answer.offset = 0;
        }
        if !request.data.is_empty() {
            self.writer.write(request.data.clone()).await?;
            self.answer.offset += signed(request.data.len() as u64);
        }
        Ok(())
    }
}

/// Opens what the first message names.
async fn open(
    store: &Arc<dyn Content>,
    scope: &Scope,
    first: &WriteContentRequest,
) -> Result<Open> {
    if first.r#ref.is_empty() {
        return Err(Error::new(
            Kind::InvalidArgument,
            "first message must have a reference",
        ));
    }
    let options = WriterOptions {
        r#ref: first.r#ref.clone(),
        total: u64::try_from(first.total).unwrap_or(0),
        expected: expected(first)?,
        media_type: String::new(),
    };
    let (total, expected) = (options.total, options.expected.clone());
    let writer = store.writer(scope, options).await?;
    let answer = WriteContentResponse::default();
    Ok(Open {
        writer,
        r#ref: first.r#ref.clone(),
        total,
        expected,
        answer,
    })
}

fn action(request: &WriteContentRequest) -> Result<WriteAction> {
    WriteAction::try_from(request.action)
        .map_err(|_| Error::invalid(format!("write action {}", request.action)))
}

fn expected(request: &WriteContentRequest) -> Result<Option<Digest>> {
    match request.expected.as_str() {
        "" => Ok(None),
        text => Digest::parse(text).map(Some),
    }
}

#[cfg(test)]
mod tests;
