//! Questions: what is answered from what the daemon knows, at once and as a whole. A
//! connection has a few of them answered at a time.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use axum::http::Method;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::capacity::limits;

/// Those of one connection.
#[derive(Clone)]
pub(super) struct Questions(Arc<Semaphore>);

/// One's turn, once it has come; held until the answer has been taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn(Arc<OnceLock<OwnedSemaphorePermit>>);

impl Questions {
    pub(super) fn new() -> Self {
        Questions(Arc::new(Semaphore::new(limits::QUESTIONS)))
    }

    /// Waits for its turn.
    pub(super) async fn wait(self, turn: Turn) {
        if let Ok(permit) = self.0.acquire_owned().await {
            let _ = turn.0.set(permit);
        }
    }
}

/// Whether it is one.
pub(super) fn is_question(method: &Method, path: &str) -> bool {
    let Some(method_of_grpc) = path.strip_prefix("/stockade.v1.") else {
        return *method == Method::GET && path != "/v1/events";
    };
    let whole = ["Data/", "Observability/", "Workspaces/"];
    let single = [
        "Plugins/ListPlugins",
        "Plugins/GetPlugin",
        "Events/ListCrashes",
        "Extensions/ListExtensions",
    ];
    whole.iter().any(|service| method_of_grpc.starts_with(service))
        || single.contains(&method_of_grpc)
}

/// The body of a question whose turn comes when all of it is there. Who waits has read it:
/// what lies unread on a connection is bounded for all its requests together, and those
/// whose turn it is could not get the rest of theirs.
pub(super) struct Asked<B> {
    inner: B,
    questions: Questions,
    turn: Turn,
    waits: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    over: bool,
}

impl<B> Asked<B> {
    pub(super) fn new(inner: B, questions: Questions, turn: Turn) -> Self {
        Asked { inner, questions, turn, waits: None, over: false }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Asked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.waits.is_none() && !self.over {
            if let Some(frame) = ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                return Poll::Ready(Some(frame));
            }
            self.waits = Some(Box::pin(self.questions.clone().wait(self.turn.clone())));
        }
        if let Some(waits) = &mut self.waits {
            ready!(waits.as_mut().poll(context));
            (self.waits, self.over) = (None, true);
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[test]
    fn questions_are_what_is_answered_as_a_whole() {
        let get = |path| is_question(&Method::GET, path);
        let post = |path| is_question(&Method::POST, path);
        assert!(get("/v1/plugins") && get("/v1/plugins/x/tools") && get("/admin/plugins/list"));
        assert!(post("/stockade.v1.Plugins/GetPlugin") && post("/stockade.v1.Data/ListValues"));
        for path in [
            "/stockade.v1.Plugins/WatchPlugins",
            "/stockade.v1.Tools/Call",
            "/stockade.v1.Extensions/EvaluateCondition",
            "/stockade.v1.Events/ReadLogs",
            "/grpc.health.v1.Health/Watch",
        ] {
            assert!(!post(path), "{path}");
        }
        assert!(!get("/v1/events") && !post("/v1/plugins/x/tools/t/run"));
    }

    #[tokio::test]
    async fn all_of_a_body_is_read_before_its_turn_is_waited_for() {
        let questions = Questions::new();
        let turns: Vec<Turn> = (0..limits::QUESTIONS).map(|_| Turn::default()).collect();
        for turn in &turns {
            questions.clone().wait(turn.clone()).await;
        }
        let turn = Turn::default();
        let inner = Full::new(Bytes::from_static(b"text"));
        let mut body = Asked::new(inner, questions, turn.clone());
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "text");
        assert!(futures_util::FutureExt::now_or_never(body.frame()).is_none());
        assert!(!body.is_end_stream() && turn.0.get().is_none());
        drop(turns);
        assert!(body.frame().await.is_none());
        assert!(body.is_end_stream() && turn.0.get().is_some());
    }
}
