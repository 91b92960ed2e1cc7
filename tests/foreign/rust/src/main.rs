//! Prints the events of a Jetstream, one JSON object a line, with `jetstream-oxide`.
//!
//!     client URL COMPRESS CURSOR [COLLECTION…]
//!
//! COMPRESS is true or false; a CURSOR of 0 means live. The library reconnects by itself, at the same cursor. It reads
//! records into types of its own, and a commit with any other record as one without record and CID. So neither is
//! printed.

use std::env;

use chrono::DateTime;
use jetstream_oxide::{
    events::{commit::CommitEvent, EventInfo, JetstreamEvent},
    JetstreamCompression, JetstreamConfig, JetstreamConnector,
};
use serde_json::{json, Value};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let micros: i64 = arguments[2].parse().expect("CURSOR is a number");
    let config = JetstreamConfig {
        endpoint: arguments[0].clone(),
        compression: match arguments[1].as_str() {
            "true" => JetstreamCompression::Zstd,
            _ => JetstreamCompression::None,
        },
        cursor: (micros > 0).then(|| DateTime::from_timestamp_micros(micros).expect("CURSOR is a time")),
        wanted_collections: arguments[3..].iter().map(|name| name.parse().expect("an NSID")).collect(),
        base_delay_ms: 10,
        max_retries: 100,
        max_delay_ms: 100,
        ..Default::default()
    };
    let events = JetstreamConnector::new(config).expect("usable").connect().await.expect("connected");
    while let Ok(event) = events.recv_async().await {
        println!("{}", shown(event));
    }
}

fn shown(event: JetstreamEvent) -> Value {
    match event {
        JetstreamEvent::Commit(commit) => {
            let (info, commit) = match commit {
                CommitEvent::Create { info, commit } | CommitEvent::Update { info, commit } => (info, commit.info),
                CommitEvent::Delete { info, commit } => (info, commit),
            };
            let operation = format!("{:?}", commit.operation).to_lowercase();
            with(info, "commit", json!({"collection": commit.collection, "operation": operation,
                "rev": commit.rev, "rkey": commit.rkey}))
        }
        JetstreamEvent::Identity(event) => with(event.info, "identity", json!({"seq": event.identity.seq})),
        JetstreamEvent::Account(event) => with(event.info, "account", json!({"seq": event.account.seq})),
    }
}

fn with(info: EventInfo, kind: &str, data: Value) -> Value {
    json!({"did": info.did, "time_us": info.time_us, "kind": kind, kind: data})
}
