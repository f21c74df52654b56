//! Reads channels with the original client library, as applications do, and prints what they get.
//!
//! Arguments: the URL to read at, up to `/read`, then what to subscribe to, in order:
//! `CHANNEL=a,b` is one stream of the events of two stream ids, `CHANNEL?a` awaits one response.
//! Each channel has a client of its own, since a client follows only one.
//!
//! Prints one JSON object per line: `{"asked": CHANNEL}` when the library asks which channel a
//! subscription is for; from then on it misses nothing. Then `{"from": ARGUMENT, "body": BODY}`
//! for each event, and `{"from": ARGUMENT, "ended": REASON}` when no more can come.

use std::error::Error;
use std::future::Future;

use futures::future::{join_all, BoxFuture};
use futures::{FutureExt, StreamExt};
use megaphone::client::{model::StreamSpec, MegaphoneClient};
use serde_json::{json, Value};

type Failure = Box<dyn Error + Send + Sync>;

const EVENTS_REMEMBERED: usize = 100;

#[derive(Clone)]
struct Subscription {
    argument: String,
    channel: String,
    streams: Vec<String>,
    is_response: bool,
}

impl Subscription {
    fn parse(argument: &str) -> Self {
        let at = argument.find(['=', '?']).expect("CHANNEL=a,b or CHANNEL?a");
        Self {
            argument: argument.to_owned(),
            channel: argument[..at].to_owned(),
            streams: argument[at + 1..].split(',').map(str::to_owned).collect(),
            is_response: argument[at..].starts_with('?'),
        }
    }

    /// Answer the library, which asks what to read and says which channel it reads already.
    fn answer(&self, reads: Option<String>) -> impl Future<Output = Result<StreamSpec, Failure>> {
        println!("{}", json!({"asked": self.channel, "reads": reads}));
        let (channel, streams) = (self.channel.clone(), self.streams.clone());
        async move { Ok(StreamSpec { channel, streams }) }
    }

    fn print(&self, body: Value) {
        println!("{}", json!({"from": self.argument, "body": body}));
    }

    fn print_end(&self, reason: &str) {
        println!("{}", json!({"from": self.argument, "ended": reason}));
    }
}

/// Subscribe at once; the future that is returned prints what comes.
async fn subscribe(
    client: &mut MegaphoneClient,
    subscription: Subscription,
) -> Result<BoxFuture<'static, ()>, Failure> {
    let asked = subscription.clone();
    let mut events = client
        .new_unbounded_stream::<_, Failure, _, Value>(move |reads| asked.answer(reads))
        .await?;
    Ok(async move {
        while let Some(body) = events.next().await {
            subscription.print(body.expect("any JSON is a value"));
        }
        subscription.print_end("no more events");
    }
    .boxed())
}

async fn await_response(client: &mut MegaphoneClient, subscription: &Subscription) {
    let response = client
        .delayed_response::<_, Failure, _, Value>(|reads| subscription.answer(reads))
        .await;
    match response {
        Ok(body) => subscription.print(body),
        Err(error) => subscription.print_end(&error.to_string()),
    }
}

async fn read_channel(url: String, subscriptions: Vec<Subscription>) -> Result<(), Failure> {
    let mut client = MegaphoneClient::new(&url, EVENTS_REMEMBERED);
    let mut printing = Vec::new();
    for subscription in subscriptions {
        if subscription.is_response {
            await_response(&mut client, &subscription).await;
        } else {
            printing.push(tokio::spawn(subscribe(&mut client, subscription).await?));
        }
    }
    join_all(printing).await;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().expect("the URL to read at");
    let mut channels: Vec<Vec<Subscription>> = Vec::new();
    for subscription in arguments.map(|argument| Subscription::parse(&argument)) {
        match channels
            .iter_mut()
            .find(|one| one[0].channel == subscription.channel)
        {
            Some(channel) => channel.push(subscription),
            None => channels.push(vec![subscription]),
        }
    }
    let reading = channels
        .into_iter()
        .map(|channel| read_channel(url.clone(), channel));
    for outcome in join_all(reading).await {
        outcome?;
    }
    Ok(())
}
