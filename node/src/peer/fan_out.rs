//! One question to several members at once.

use std::time::Duration;

use futures::Stream;
use futures::stream::FuturesUnordered;
use palisade_engine::MemberId;
use palisade_engine::MemberInfo;
use tonic::{Response, Status};

use crate::peer::connections::{Client, Lane, Peers};

impl Peers {
    /// Asks all `members` but this one the same question at once. Yields each answer as it comes; a member that does not
    /// answer within `timeout` yields an error.
    pub(crate) fn fan_out<'a, T, F>(
        &'a self,
        members: impl IntoIterator<Item = (&'a MemberId, &'a MemberInfo)>,
        lane: Lane,
        timeout: Duration,
        ask: impl Fn(Client) -> F + 'a,
    ) -> impl Stream<Item = (MemberId, Result<T, Status>)>
    where
        T: 'a,
        F: Future<Output = Result<Response<T>, Status>> + 'a,
    {
        let ask = &ask;
        let others = members.into_iter().filter(|(id, _)| **id != self.me());
        let questions = others.map(|(id, info)| {
            let asked = self.client(*id, &info.address, lane).map(ask);
            async move {
                let answer = async { Ok(asked?.await?.into_inner()) };
                let answer = tokio::time::timeout(timeout, answer).await;
                let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
                if let Err(status) = &answer {
                    tracing::debug!(member = %id, ?lane, %status, "a member did not answer");
                }
                (*id, answer)
            }
        });
        questions.collect::<FuturesUnordered<_>>()
    }
}
