"""Limits and tunables of the server, one frozen value for each package.

They are passed in, so that a test or an embedder can choose others. A limit that a specification sets stands
beside the code that enforces it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from jetstream.token_bucket import Rate


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """What one upstream may send, and how long the server waits for it."""

    # --- the connection ---
    # Seconds to wait before connecting again: the bound of the random delay after the first failure, which
    # doubles with each failure, and its maximum.
    backoff_first_s: float = 1.0
    backoff_max_s: float = 30.0
    # Seconds until the WebSocket handshake must be complete.
    handshake_timeout_s: float = 20.0
    # Seconds until a Jetstream must answer how far it is. Clients wait for that.
    question_timeout_s: float = 2.0
    # Seconds of silence before a ping is sent, and then until its pong. Relays are silent for minutes only
    # when the network is; a PDS may be silent for days, which is healthy.
    ping_after_s: float = 30.0
    pong_timeout_s: float = 20.0
    # Seconds after which a connection without a frame is one to an upstream that is there.
    settle_s: float = 5.0
    # Seconds without a frame after which the state is `idle`.
    idle_after_s: float = 60.0
    # Seconds in which frames arrive and none is accepted until the condition `frames_not_taken` begins.
    none_accepted_s: float = 10.0
    # Frames in a row that have no number. So many take 0.1 s, and no firehose sends them.
    unreadable_frames_max: int = 10_000

    # --- batches ---
    # Frames of one batch, and seconds until it ends even if it has fewer. Frames that are left over wait for
    # a whole commit and flush, so a batch that is too small costs more than one that is too large.
    batch_frames_max: int = 500
    # Ops of the messages of one batch, where these are verified or merged: it ends with the message that
    # reaches this. Each op may become an event, and the events of a batch are stored at once.
    batch_ops_max: int = 1_000
    turn_s: float = 0.004
    # A source of which so many messages in a row were known from others rests for some seconds after each
    # batch up to a size: to receive ten messages at once takes a fraction of the time. What it is the first
    # to bring is late by that much, once.
    rest_after: int = 100
    rest_s: float = 0.01
    rest_frames_max: int = 50
    # Without a subscriber, every source rests so long after such a batch, unless it is late by more. The next
    # subscriber may get its first event late by so much. At 50 events/s, the server wakes up ten times a
    # second, and not a hundred times.
    unawaited_rest_s: float = 0.1
    unawaited_lag_s: float = 5.0

    # --- what is received ---
    # Bytes of a message that can be received at all. The protocol's 5 MB are checked frame by frame.
    message_bytes_max: int = 32 << 20
    # Bytes of a message of a Jetstream, which is passed over if it has more. Ours are up to 1,000,000; others
    # write some characters in more bytes.
    jetstream_message_bytes_max: int = 1_100_000
    # Bytes of frames that wait to be decoded. Above it the socket is not read, and TCP slows the sender down.
    # Each frame counts with `frame_overhead_bytes` more, for the objects around it: 8 MiB are then 42,000
    # empty frames, and not 1.4 million.
    buffer_bytes_max: int = 8 << 20
    frame_overhead_bytes: int = 200
    # Bytes that one read of the socket takes. With 64 KiB the sender's window is nearly shut all the time; on
    # one machine the kernel then sends in the reader's time, and catching up costs 5 % more CPU an event.
    read_bytes_max: int = 4 << 20
    # Bytes that are parsed without a pause: at most 32,768 WebSocket frames, some ms. Less than
    # `read_bytes_max`, so that a read of one slice is one that has taken all that came.
    slice_bytes_max: int = 64 << 10
    # Control frames. Relays send two pings a minute.
    control: Rate = Rate(100.0, 200)
    # Messages, and fragments of messages, of fewer than `tiny_bytes` bytes. The smallest frame of a firehose
    # has 18 bytes, and servers that fragment messages do so by the kilobyte.
    tiny: Rate = Rate(1_000.0, 2_000)
    tiny_bytes: int = 16
    # Text messages, which no firehose sends. A Jetstream that is taken for one sends some hundreds a second.
    text: Rate = Rate(100.0, 200)
    # Bytes that wait to be sent when a ping comes. An upstream that reads leaves none: the system itself
    # holds 100 kB of pongs and more before one waits here.
    unsent_bytes_max: int = 4 << 10

    # --- sequence numbers ---
    # The largest gap that is not suspicious. A large relay sends 10,000 frames in ten seconds: so many are
    # skipped where frames are lost or filtered out.
    near_gap: int = 10_000
    # Frames above the cursor that confirm a number even though gaps are large: damaged numbers come in rows,
    # but not in rows of ten.
    confirm_frames: int = 10
    # Frames below the cursor that rise one after another until they are a new sequence. One number may be
    # damaged; three that rise are a sequence.
    restart_frames: int = 3
    # Unconfirmed numbers that are remembered. A repeat of one that is forgotten may pass unnoticed.
    outliers_max: int = 64
    # Frames in doubt for which the log is asked at once. Three take 1.2 s in a day of the log (10,800
    # segments), 64 take 4 s. So the first lookup is for as few as show a new sequence, and each one in which
    # all frames were known is followed by one for twice as many: those of an overlap are found near each
    # other, and soon.
    lookup_frames_min: int = 3
    lookup_frames_max: int = 64
    # Earlier sequences whose beginnings in the log are remembered while the server runs.
    falls_max: int = 4

    # --- work per frame ---
    # CBOR items of a frame: each list, each map, each string, each number. A commit of 1,000 ops has 11,000,
    # which take 5 ms.
    frame_items_max: int = 16_000
    # Items of a record: 2.5 ms. Real records have dozens.
    record_items_max: int = 8_000
    # Bytes of a record that is not measured, since its cost is within the limit whatever it holds. A quarter
    # of `record_items_max`: it may have an item a byte, and take the exact way (`record.EXACT_FACTOR`).
    unmeasured_record_bytes_max: int = 2_000
    # Items of all records of a commit: 15 ms. A thousand posts have as many.
    commit_items_max: int = 48_000


# Of a PDS. There may be hundreds, which send little: each may take less memory, and one that is gone for
# long is asked less often.
_PDS: Final = UpstreamLimits(
    backoff_max_s=300.0,
    message_bytes_max=8 << 20,
    buffer_bytes_max=1 << 20,
    read_bytes_max=256 << 10,
    slice_bytes_max=16 << 10,
)


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """Several upstreams, and hundreds of PDSes among them."""

    # Bytes and upstreams of `--upstream-file`.
    file_bytes_max: int = 1 << 20
    pds_max: int = 10_000
    # How often the file is read again: each time takes 0.1 s of CPU time, and is a line of the log. SIGHUPs
    # that come faster count as one.
    reloads: Rate = Rate(1.0, 10)
    # Sources that are ended in one turn of the event loop: each closes its connection.
    ends_per_turn: int = 20
    # What one PDS may send, and how long the server waits for it.
    pds: UpstreamLimits = _PDS
    # Connections to PDSes that are opened in a second: a TLS handshake takes some ms of CPU time.
    pds_connects_per_s: float = 20.0
    # Seconds for which the counts of PDSes are kept: with 10,000 of them, counting takes 5 ms.
    pds_status_s: float = 1.0
    # Seconds to wait after an error of the server itself: the bound of the random delay after the first one,
    # which doubles with each that follows at the same cursor, and its maximum.
    fault_pause_s: float = 1.0
    fault_pause_max_s: float = 30.0
    # Seconds of a connection without such an error after which the upstream is not stuck any more.
    unstuck_s: float = 60.0
    # Seconds without a connection that is of use until an upstream counts as gone.
    gone_s: float = 60.0
    # Seconds between two log lines that say how many PDSes have no connection.
    report_every_s: float = 60.0
    # Names that a log line, a reason or `/health` gives of many.
    named_max: int = 10


@dataclass(frozen=True, slots=True)
class LogLimits:
    """What the event log keeps in memory, and how its upkeep is paced."""

    # Events of a sealed segment, to the end of the last append. Segments of twice the size are 2 % smaller,
    # and take twice the time for a reader of one event.
    segment_events: int = 4_000
    # The same by bytes of bodies, so that a segment is decompressed in bounded memory. Ordinary ones have
    # 2 MiB.
    segment_bytes: int = 8 << 20
    # Of a log in PostgreSQL: sealed events in the table of the tail, with which it is changed for the other
    # one. Half a minute of a busy day.
    tail_events: int = 64_000
    # The journal, in which small appends wait for a transaction of many: half a second of a busy day. Moving
    # all of it takes 0.6 ms of the event loop, and 2 ms if hundreds of cursors have moved.
    journal_bytes: int = 256 << 10
    # An append that is larger is committed by itself: 7 ordinary events. The pages that SQLite writes for it
    # are not much more than that.
    journaled_bytes: int = 4 << 10
    # So is one with more numbers that are not stored yet: 3 bytes each.
    journaled_seqs: int = 2_000
    # Events of a batch in memory: readers get it as a whole. It is also what one read of the tail, or of the
    # events without a collection of many segments, returns.
    batch_events: int = 1_000
    # The same by bytes of text (see `Batch.text_bytes`). A thousand ordinary events have half of it.
    batch_bytes: int = 1 << 20
    # The newest events in memory: seconds of an ordinary day. A slightly late reader is served from it.
    hot_tail_events: int = 8_000
    # The same by bytes of memory. 8,000 ordinary events take a third of it; it has room for 26 records of
    # 900 kB.
    hot_tail_bytes: int = 24 << 20
    # Memory of segments that were read, shared by all readers: five ordinary ones.
    segment_cache_bytes: int = 20 << 20
    # Readers wait for the disk and for zstd, both without the GIL. More threads would only compete for it.
    reader_threads: int = 2
    # Segments whose index one scan reads: about 5 ms, in one snapshot.
    scan_segments: int = 64
    # Keys that `LogWriter.keys_from` returns: two segments, since most of the first may lie before what is
    # asked for. 2 MB of ordinary keys, 24 MB of the longest.
    lookup_keys: int = 8_000
    # Repositories whose states have changed and are not folded yet: in memory, 140 bytes each. Folding fewer
    # at once writes more: nearly every state is on a page of its own.
    repo_changes: int = 50_000
    # States that one step of folding writes while appends wait.
    fold_repos: int = 250
    # States that are kept, 60 bytes each, and in no more than this share of `--retention-bytes`. When there
    # are more, some that did not change for long are forgotten.
    repo_states: int = 50_000_000
    repo_states_share: float = 1 / 4
    # Gaps that are kept: about 100 bytes each.
    gap_rows: int = 100_000
    # Damaged ranges that are remembered. Any more are read again for each reader.
    damage_ranges: int = 1_000
    # Seconds between two runs of upkeep, beside those that are due at once.
    upkeep_interval_s: float = 1.0
    # Events that are not sealed. Above this, sealing takes time from the event loop. Waiting for the loop, it
    # manages ten segments a second.
    seal_backlog_events: int = 8_000
    # Segments that one transaction deletes: it puts about 2,000 pages on the list of free ones.
    trim_segments: int = 16
    # Segments in which upkeep looks for erased records before it seals again.
    erase_segments: int = 8
    # The write-ahead log is copied and restarted at this size: a busy minute, and a quarter of a second of
    # copying. On a small disk it is `reserve_share`.
    wal_bytes: int = 16 << 20
    # The condition `wal` holds above this: another program keeps the write-ahead log from restarting.
    wal_bytes_alarm: int = 32 << 20
    # Milliseconds for which a checkpoint waits for a reader before it is tried again later; and when the
    # write-ahead log has grown to this size, because readers of this and other processes came in the way.
    checkpoint_wait_ms: int = 10
    checkpoint_wait_long_ms: int = 200
    wal_bytes_patience: int = 24 << 20
    # The file shrinks while more than this share of its pages is free, and more than this number.
    free_share: float = 0.25
    free_pages: int = 4_096
    # Pages that one step of shrinking frees: 1 MiB.
    shrink_pages: int = 256
    # The lowest accepted `--retention-bytes`. The write-ahead log and the tail take up to half of it.
    retention_bytes_min: int = 64 << 20
    # Where another process writes the log (an edge): seconds between two looks at its files, whatever inotify
    # says, and after which nothing is served of a log that could not be looked at.
    poll_s: float = 0.25
    fresh_s: float = 1.0
    # Seconds between two heartbeats of the writer, and of its silence until an edge takes it for gone.
    heartbeat_s: float = 1.0
    writer_gone_s: float = 5.0
    # Bytes in reserve for a full disk: the size of the write-ahead log, so that it can always be copied.
    reserve_bytes: int = 16 << 20
    # On a small disk the reserve is no more than this share of it.
    reserve_share: float = 1 / 8


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """How events are written to subscribers: sizes of writes, pauses, and what may wait."""

    # The longest time for which a flush holds the event loop, in seconds. It looks at the clock once for so
    # many writes.
    turn_s: float = 0.004
    writes_per_look: int = 32
    # How many events are judged in a step of that: times the groups that each is judged for, at most so many.
    # A step takes up to 0.6 ms. All of a flush is one step for eight groups with filters. A search for a
    # phrase counts as so many groups as take as long (`delivery.phrases`).
    judged_per_step: int = 8_000
    # A flush: at most so many events, a millisecond to render, and so many bytes of their records, twice what
    # that many ordinary events have. A reader at the tip may have so much more waiting than its buffer holds.
    flush_events: int = 1_000
    flush_bytes: int = 1 << 20
    # Subscribers of a lane before there is another one: a millisecond to write to. With eight lanes instead
    # of four, delays were no shorter, and each has its own commit.
    lane_subscribers: int = 200
    lanes_max: int = 4

    # The resolution of uvloop's timers in seconds: nothing shorter is slept.
    timer_s: float = 0.001
    # A pause after a flush: this share of the time that the flush took. In a round of one flush of each lane
    # the pauses take `pause_min_s` or more: it halves the flushes where each is light and events are many.
    pause_ratio: float = 0.36
    pause_min_s: float = 0.001
    # A flush of so many events pauses for catching up only. It would not get cheaper by waiting.
    full_flush_events: int = 200
    # For readers that catch up, pause longer: so many times the loop time per reader that the flush used.
    # With 1, thousands of returning readers kept their distance.
    catch_up_ratio: float = 2.0
    # No pause is longer, in seconds.
    pause_max_s: float = 0.02
    # Lanes are flushed without a pause until they took this share of the last pause. Else a pause and a
    # commit for each would be most of the work, where lanes are light or the event loop is busy.
    work_ratio: float = 0.5

    # A chunk is what one write carries to a reader that catches up: so many events, 0.1 ms to render, and
    # bytes of frames. A slow reader may have this much more waiting than its buffer holds.
    chunk_events: int = 200
    chunk_bytes: int = 128 << 10
    # Events that are tested against a filter for one chunk: 0.2 ms with 10,000 DIDs.
    judged_events: int = 1_000
    # The same for a content filter, and bytes of their records: each may have to be parsed, 0.4 ms for all of
    # them. The worst texts take 13 ms.
    parsed_events: int = 200
    parsed_bytes: int = 64 << 10
    # What the search for a content filter's phrases may cost for one chunk, as `Content.search_cost` counts
    # it: 2 ms at worst; one record in any case.
    searched_cost: int = 40_000
    # Chunks of one reader in a turn of the event loop. With one, 5,000 returning readers took 8 s instead of
    # 6.
    chunks_per_turn: int = 5
    # Seconds after which nothing is begun in a turn that may take long: a reader has no more chunks, a flush
    # compresses for no other encoding. 200 ordinary events are compressed in 0.3 ms, a record of 990 kB in 3.
    costly_s: float = 0.0015
    # Different batches that are held by feeders waiting for their turn: 5 MB for an ordinary segment, and
    # each of 200 readers may be at another one.
    held_batches: int = 12
    # Bytes of rendered events that are kept for other readers. The 8,000 newest events take 5 MiB in a wire,
    # a sealed segment of which all is read 5 MiB. With the log's hot tail and segment cache that is 96 MiB.
    render_cache_bytes: int = 52 << 20
    # Bytes of parsed records that are kept for other content filters: those of 8,000 ordinary events.
    feature_cache_bytes: int = 12 << 20
    # Collections whose groups are remembered. Hostile ones, which come from upstream, must not fill memory.
    collections_remembered: int = 10_000

    # Every subscriber is checked this often, so many of them in a turn of the event loop, and idle ones are
    # sent a keep-alive this often. In seconds.
    watch_interval_s: float = 0.5
    # Seconds for which it is kept how far subscribers are behind.
    readers_kept_s: float = 1.0
    checks_per_turn: int = 500
    ping_interval_s: float = 30.0


@dataclass(frozen=True, slots=True)
class WebLimits:
    """What clients may send over HTTP and WebSocket, how much at once, and how long each step may take.

    The sizes of a request and of a message are promised to clients, and are constants in
    `web/head_reader.py` and `web/websocket.py`. The buffers and the number of subscribers are settings.
    """

    # Accepting connections (web/listener.py).

    # In one turn of the event loop. A handshake takes 0.25 ms; the others wait in the kernel.
    accepts_per_turn: int = 4
    # Connections that wait in the kernel to be accepted: a storm of clients that reconnect.
    backlog: int = 4096
    # Seconds until the next attempt after the process has run out of file descriptors.
    accept_pause_s: float = 1.0
    # The same while those that were accepted wait for an edge (`supervisor`).
    accept_rest_s: float = 0.05
    # File descriptors that connections may not take: for upstream, the log's readers and a scrape. Where
    # the process may open few, an eighth of them.
    files_reserved: int = 32
    # Bytes of one connection that the kernel buffers beyond what is in flight. The default is 4 MB, for each
    # client that reads slowly.
    unsent_bytes_max: int = 256 << 10
    # The same of a connection that reads slowly. The kernel is given that much at once, of all sockets that
    # are ready in one turn of the event loop: with 200 slow clients, 256 KiB took 36 ms,
    # 32 KiB 24 ms, and 8 KiB 15 ms.
    unsent_slow_bytes_max: int = 8 << 10
    # What was written for a slow client is joined if its pieces are below this many bytes on average. A piece
    # that is not costs 0.1 kB, and 100 slow clients that share large ones took 67 MiB less.
    joined_bytes: int = 4 << 10
    # Bytes of one connection that the kernel buffers until they are read; it doubles the value. All sockets
    # that are ready are read in one turn of the event loop: with 50 clients that each sent an update of
    # 10,000 DIDs, that turn took 22 ms.
    unread_bytes_max: int = 32 << 10

    # Limits per address (web/address_limits.py). The rates are settings.

    # Seconds of each rate that an address may have at once: when a server restarts, all clients of an address
    # are back within seconds.
    address_burst_s: float = 30.0
    # Addresses without a connection that are remembered until they are within their rates again: 0.5 kB each.
    addresses_remembered_max: int = 20_000
    # Connections of one address that are over its limit and wait for their 429; others are closed at once.
    address_untold_max: int = 10

    # HTTP (web/connection.py, web/connections.py, web/head_reader.py).

    # Connections that are not subscriptions. Each takes 3 kB. As many slow clients as this may reconnect at
    # once, and all are served.
    connections_max: int = 10_000
    # Connections that are closed at once when file descriptors run short: as many as one turn accepts.
    evictions_per_turn: int = 4
    # Seconds for a complete request, and again for the client to read the last response.
    request_timeout_s: float = 10.0
    # Seconds between two requests: longer than proxies keep an idle connection.
    keep_alive_s: float = 75.0
    # Requests on one connection; behind a proxy it may carry many clients. A response takes 0.1 ms of CPU
    # time, `/metrics` 1 ms.
    requests: Rate = Rate(100, 200)
    # Requests for `/metrics` for which it is rendered, which takes 1 ms. Others get the last response, as
    # long as that is not older than `metrics_kept_s` seconds.
    metrics_renderings: Rate = Rate(20, 100)
    metrics_kept_s: float = 1.0
    # Seconds for which a response of `/status.json` is kept. Its figures change once a second.
    status_kept_s: float = 0.5
    # Header fields of one request. Browsers and proxies send a few dozen.
    header_fields_max: int = 100
    # Seconds that clients have to read their responses when the server stops.
    shutdown_timeout_s: float = 1.0

    # Of HTTP connections and of subscribers alike.

    # Bytes of incomplete requests, again of bodies that wait to be read, and again of incomplete messages, of
    # all clients: 64 requests of the greatest length without a body, 16 with one.
    pending_bytes_max: int = 64 << 20
    # Seconds between two checks of the timeouts of all connections.
    deadline_check_s: float = 0.5
    # Bytes discarded of one connection after its last answer; then it is not read any more.
    lingering_bytes_max: int = 4 << 20
    # Of those, bytes that are read without a pause: a close frame, the rest of a request.
    lingering_bytes_at_once: int = 16 << 10
    # Seconds between two reads after that, of whichever connection. Without a pause, 50 clients that went on
    # sending took 25 ms of one turn.
    lingering_pause_s: float = 0.002

    # WebSocket (web/subscribe.py, web/sink.py, web/websocket.py).

    # Seconds for the first `options_update` of a client with `requireHello`.
    hello_timeout_s: float = 60.0
    # Seconds after which a client that was refused with 503 is told to try again.
    retry_after_s: int = 10
    # Seconds for a complete message.
    message_timeout_s: float = 10.0
    # Seconds for a client to answer a close frame; then the connection is aborted.
    close_timeout_s: float = 3.0
    # Event streams with a compressor (web/event_stream.py). Any more are not compressed. They take 12 MiB
    # with zstd, beside what waits for them.
    compressed_streams_max: int = 100
    # Messages of one client.
    messages: Rate = Rate(40, 200)
    # Bytes of one client, in frames of every kind: 2.9 updates of 10,000 DIDs a second.
    message_bytes: Rate = Rate(1 << 20, 6 << 20)
    # Pings, pongs and close frames of one client.
    control_frames: Rate = Rate(40, 200)
    # Fragments of messages of one client: 1 MB in pieces as small as a packet.
    fragments: Rate = Rate(1_000, 4_000)
    # Frames that are handled at once when data comes in; the rest waits for its turn. Each takes 2 µs.
    frames_per_read: int = 4
    # Frames that are handled in each step of such a turn.
    frames_per_step: int = 32
    # More bytes than this wait for their turn, too, and so do those of a request: unmasking 0.4 MB takes 0.7
    # ms, and every socket may be ready in the same turn of the event loop.
    bytes_per_read: int = 8 << 10
    # The pause after each turn of handling messages, as a multiple of its length. Two leaves two thirds of
    # the event loop to live events.
    message_pause_ratio: float = 2.0
    # Lists of DIDs that clients may upload (web/did_lists.py): how many, and their bytes of memory. A list of
    # 100,000 counts as 20 MB, of which 6 are its entries in the index while it is in use. Each is kept for so
    # many seconds after its upload, and after its last use. Then one is dropped every second.
    did_lists_max: int = 1_000
    did_lists_bytes_max: int = 256 << 20
    did_lists_kept_s: float = 3600.0
    # Uploads that are read, of all clients: one of 100,000 DIDs takes 60 ms of CPU time, in steps.
    did_lists_read: Rate = Rate(1, 20)
    # Requests for `/explain` that are answered, of all clients, and how many of them may wait for their turn.
    # Each judges and compresses a minute of events, which takes 0.1 s of CPU time: so many events and bytes
    # at a time, with a pause after each that is so many times as long. A content filter may have to parse all
    # of the bytes: no more than for a reader in delivery (`DeliveryLimits.parsed_bytes`).
    explanations: Rate = Rate(0.5, 5)
    explanations_waiting_max: int = 5
    explained_per_turn: int = 200
    explained_bytes_per_turn: int = 64 << 10
    explained_search_cost: int = 40_000
    explained_pause_ratio: float = 2.0
    # Collections of that minute, of which those are shown that a prefix matches. An account can make up any
    # number of them, and each may have to be compared with a hundred exceptions.
    explained_collections_max: int = 1_000
    # Requests for `/gaps` that are answered, of all clients, and how many of them may wait for their turn. A
    # response has so many gaps, which are 140 kB of JSON, and so many bytes at most: DIDs may be long.
    gap_pages: Rate = Rate(20, 100)
    gap_pages_waiting_max: int = 10
    gaps_per_page: int = 1_000
    gap_page_bytes: int = 256 << 10
    # Seconds between two steps of closing all connections over some time, when the server stops.
    drain_step_s: float = 0.1
    # Seconds for which connections are cleaned up in one turn of the event loop, when a network loses
    # thousands of clients at once: some dozens.
    removals_turn_s: float = 0.001


@dataclass(frozen=True, slots=True)
class RuntimeLimits:
    """How the process takes care of its memory, its open files and its clock, and how it stops."""

    # Container objects that are allocated before the garbage collector runs (Python's default is 700; a run
    # over 10,000 takes 2 ms), and how many runs there are before it looks again at those that survived one.
    # The third number turns full collections off: they take up to 0.5 s. Nothing that lives long is part of a
    # cycle when it ends (tests/integration/test_memory.py).
    gc_thresholds: tuple[int, int, int] = (10_000, 3, 1_000_000_000)
    # Young objects are counted this often, and collected when there are more than `young_max`. While they
    # become few more, the pauses between counts grow.
    young_every_s: float = 0.02
    young_pause_max_s: float = 0.08
    young_max: int = 5_000
    # Free memory is given back this often, while more than this is in use. A server with a few hundred
    # subscribers uses less.
    release_every_s: float = 30.0
    release_above_bytes: int = 112 << 20
    # Open files of the server itself: the log, its readers, the listeners and upstream. With scrapes and
    # handshakes it needs at most `files_needed`. Each subscriber is one more.
    files_own: int = 32
    files_needed: int = 200
    # How often counters are read for `/status.json`, the clock is compared with the log's tip, an uploaded
    # list is dropped whose time is over, and the log lines of a burst are counted. The log reads the clock at
    # every batch as well.
    watch_every_s: float = 1.0
    # Seconds between two lines of the log with the server's figures.
    report_every_s: float = 60.0
    # How long subscribers may take to answer their close frame when the server stops.
    close_s: float = 5.0
    # Over how many seconds an edge closes its connections before, if `--drain` does not say.
    drain_s: float = 10.0

    def beside(self, upstreams: int) -> RuntimeLimits:
        """Return these limits with an open file for each of so many upstreams beside the first."""
        more = max(upstreams - 1, 0)
        return replace(self, files_own=self.files_own + more, files_needed=self.files_needed + more)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How the signing keys of accounts are fetched and kept."""

    # --- what is kept ---
    # Accounts whose key is in memory, at most: 200,000 take 44 MB with PDSes whose names have 30
    # characters. At least half of them are those used last.
    memory_entries: int = 200_000
    # Rows in the file for accounts that are no `did:plc`, of 100 bytes each; a tenth more for a while. And
    # hosts of PDSes that have a number in the file: the network has some thousands.
    other_rows_max: int = 100_000
    hosts_max: int = 200_000
    # Seconds after which a key is fetched again when it is used. Until the answer it is used as it is.
    lifetime_s: float = 24 * 3600.0
    # Seconds between two requests for one DID, whatever the reason: without it, forged signatures would make
    # us send requests. And when the account has announced a change since the last one.
    refresh_min_s: float = 60.0
    announced_min_s: float = 5.0
    # Seconds for which it is remembered that a DID has no key, and that a request has failed otherwise.
    negative_s: float = 120.0
    failure_s: float = 15.0
    # DIDs of which that is remembered, and those that were reported as changed.
    notes_max: int = 50_000
    # Accounts whose earlier keys are in memory.
    histories_max: int = 10_000
    # Microseconds around the time of a commit in which a key must have been valid: the clocks of a PDS and of
    # the directory differ, and a commit may be dated five minutes ahead.
    history_slack_us: int = 300_000_000

    # --- requests ---
    # Seconds for everything that one DID needs: its turn, and all directories.
    timeout_s: float = 10.0
    # Requests that run at the same time, to directories and to hosts of `did:web`. Together 32. The second
    # number is apart, because such hosts can be slow on purpose.
    requests_max: int = 24
    web_requests_max: int = 8
    # Requests to directories, all together. The public directory publishes no limit; Bluesky's own services
    # (hepa, palomar) have this one.
    plc_rate: Rate = Rate(100.0, 100)
    # Requests to hosts of `did:web`, all together: accounts can name hosts of somebody else.
    web_rate: Rate = Rate(10.0, 20)
    # DIDs that wait for an answer, and refreshes of keys that are in use. One source has at most half of the
    # first number, and less if others have some.
    waiting_max: int = 10_000
    refreshes_max: int = 4
    # Bytes of a DID document, and of an audit log. Real ones have 1 kB, and 1 kB an operation.
    document_bytes_max: int = 256 << 10
    history_bytes_max: int = 1 << 20
    # Seconds before the directories are asked again, once, after a lost connection or an HTTP status of 500
    # and more.
    retry_s: float = 0.3
    # Failures in a row after which a directory is paused; more of them make the pause longer, up to 30 s.
    directory_failures: int = 5

    # Seconds for which a message waits for a key, whatever is done for it.
    wait_s: float = 10.0
    # Seconds of failures, without an answer, after which the condition `keys_unavailable` begins; and seconds
    # since the last failure after which it ends, if nothing was asked since.
    outage_s: float = 30.0
    outage_over_s: float = 300.0
    # Seconds between two looks at that.
    look_s: float = 1.0

    # --- the file ---
    # Seconds after which a look into the file is given up, and the key is fetched.
    read_s: float = 2.0
    # New keys are written after so many, or so many seconds. What cannot be written is dropped above the
    # third number.
    write_keys: int = 500
    write_s: float = 1.0
    unwritten_max: int = 20_000


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """The processes that examine messages, and what waits for them."""

    # Seconds for which messages are examined in one turn of the event loop, where there are no processes.
    turn_s: float = 0.004
    # Bytes and messages that a process is sent at once. The first number fits the buffer of a socket. The
    # second bounds what a process does before it answers.
    parcel_bytes: int = 128 << 10
    parcel_tasks: int = 64
    # Bytes that are with all processes together. What is above it waits.
    bytes_max: int = 32 << 20
    # What a message counts beside its blocks: its ops, texts and objects.
    task_bytes: int = 1_000
    # Seconds of silence after which a process is killed, and how often in that time it is looked at. Only one
    # that was silent at each look is killed, so a pause of the whole machine kills none.
    hang_s: float = 10.0
    looks: int = 5
    # The same for a process that starts: it imports the package.
    start_s: float = 60.0
    # Starts that fail in a row until the server ends. Each is followed by a longer pause.
    starts_failed_max: int = 5
    # Seconds of CPU time that what is sent at once may take. A commit of 200 ops and 1.9 MB takes 15 ms.
    cpu_s: float = 5.0
    # How many processes may end by themselves until the message that each was busy with alone is refused, and
    # how many may be killed, which another program may have done.
    deaths_max: int = 2
    kills_max: int = 5


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What waits before the log, and what is remembered of merged upstreams."""

    # --- the queue ---
    # Bytes of blocks, and batches, that sources have accepted and that are not examined yet. A source decodes
    # for `UpstreamLimits.turn_s` at a time, so batches bound what else there is to a message.
    queue_bytes_max: int = 16 << 20
    queue_batches_max: int = 64
    # Messages of one run, which are examined, judged and stored at once, and their ops, which may all become
    # events. And runs that are examined while one is judged: with processes that examine, each must have
    # something to do.
    run_messages_max: int = 1_000
    run_ops_max: int = 2_000
    runs_max: int = 2
    # Seconds of judging in one turn of the event loop.
    turn_s: float = 0.004
    # Messages of a run whose states are looked up in one turn: 15 µs each, where the log must be asked.
    prepared_per_turn: int = 250
    # URLs of PDSes whose hosts are found in one turn, where a file of them was read: 3 µs each.
    hosts_per_turn: int = 500
    # Messages that are judged in one turn because they have waited for long enough: 6 ms. Thousands may be
    # due at once, after the disk was full, or while readers are waited for.
    due_per_turn: int = 200
    # Seconds in which the queue is judged when the server stops. What is left is read again after a restart.
    finish_s: float = 3.0

    # --- what the operator is told ---
    # Seconds for which verdicts are counted; messages in them, and the share of one verdict, above which a
    # condition begins. Ordinary streams have some in ten thousand.
    report_s: float = 60.0
    report_least: int = 20
    report_share: float = 0.5

    # --- after a break in a repository's chain, while another source may bring what is missing ---
    # Seconds. Relays of one network are some hundred milliseconds apart.
    hold_s: float = 2.0
    # Messages of one repository: with three sources, five commits that each of them has sent.
    held_per_repo: int = 16
    # Bytes of memory of all of them. 2,000 messages a second that all break chains have 40 MB in 2 s.
    held_bytes_max: int = 64 << 20

    # --- while an account's key is fetched ---
    # Seconds: the resolver has given up by then (`KeyLimits.timeout_s`).
    key_wait_s: float = 10.0
    # Messages of one account, whose key is fetched once for all of them. Where a server catches up, one that
    # writes a lot has some hundreds in the time that a request takes.
    waiting_per_repo: int = 1_000
    # Bytes of memory of all of them.
    waiting_bytes_max: int = 64 << 20

    # Seconds until the earlier keys of an account are asked for once more, if that was done a moment ago
    # (`KeyLimits.announced_min_s`).
    ask_again_s: float = 5.0
    # Accounts for which that was done, and is not done again.
    asked_again_max: int = 1_000

    # Messages of either kind. With an empty cache of keys, those of ten seconds wait: 10,000 on an ordinary
    # day. Each is a number in the cursor of its source, which is stored with every append.
    unstored_max: int = 20_000

    # --- identities ---
    # Seconds in which equal messages pass once, and how many of them are remembered: 80 a second, 10 MB.
    identities_window_s: float = 600.0
    identities_max: int = 50_000

    # --- accounts ---
    # Rows of accounts on which sources differ, or that are not active. 300 bytes of memory each.
    account_rows_max: int = 50_000
    # Accounts that are deleted by one source, and not by another one yet. 400 bytes of memory each.
    deletions_max: int = 10_000
    # Seconds for which a source is connected, or is not, until another one decides. A source that has lost
    # its connection is back after one or two attempts, mostly.
    account_grace_s: float = 30.0
    # States of repositories in memory: 0.3 kB each, and 2.3 kB for a DID that is as long as it may be.
    states_kept: int = 8_192
    # Accounts that are looked at in one turn when another source decides: 2 ms.
    accounts_per_turn: int = 1_000


@dataclass(frozen=True, slots=True)
class ExportLimits:
    """How a directory's `/export` is read."""

    # Operations of one request (the directory's maximum), bytes of its answer (an operation has up to 7,500
    # bytes of CBOR), and seconds for it.
    page_ops: int = 1_000
    page_bytes_max: int = 16 << 20
    page_timeout_s: float = 60.0
    # Failures in a row after which an import ends; each is followed by a longer pause, up to 30 s. With HTTP
    # status 429 it does not end.
    page_failures_max: int = 8
    # The same while the directory has never answered: its name may be wrong.
    first_failures_max: int = 2
    # Seconds between two requests once the end is reached.
    poll_s: float = 60.0
    # Where a directory has no sequence numbers: how far before the newest operation the next request begins,
    # in microseconds. Operations become visible a little out of order.
    overlap_us: int = 10_000_000
    # Seconds by which what is known is taken to be older: the clock of the directory may differ from ours.
    settle_s: int = 60
    # Operations that are written at once during an import. So many, 5 MB, are read again after a crash.
    stage_ops: int = 100_000
    # Operations that are moved to their place in one transaction, at the end of an import: 0.7 s.
    fold_ops: int = 250_000
    # Seconds between two lines of progress in the log of an import, and in that of a server.
    progress_s: float = 30.0
    follow_progress_s: float = 60.0
    # Failures in a row, a minute apart, with which the condition `keys_not_followed` begins.
    follow_failures: int = 2


# Seconds for which the sources of a server without subscribers of its own rest, so that what comes meanwhile
# is one batch: its events are late by up to so much. At 500 events/s through a database, an ingest took
# 0.29 ms of CPU for each event with this, 0.47 with 2 ms; with 10 ms, half of the events came 8 ms later.
LINGER_S: Final = 0.006
# How many times as many frames its batches may have, and how many times as long decoding one may take, where
# many frames wait: nobody waits for a turn, and each batch waits for a commit: milliseconds in a database.
UNSHARED_FRAMES: Final = 2
UNSHARED_TURN: Final = 4


@dataclass(frozen=True, slots=True)
class SupervisorLimits:
    """How the processes of `--edges` are watched and replaced, and what passes between them."""

    # --- the processes ---
    # Seconds between two heartbeats of a process. One that is silent for `hang_s` is killed. It is looked at
    # so often in that time, and must have been silent at each look: a pause of the whole machine kills none.
    heartbeat_s: float = 1.0
    hang_s: float = 10.0
    looks: int = 5
    # The same for a process that starts: it imports the package, and may open a large log.
    start_s: float = 60.0
    # Seconds until a process is replaced: the bound of the random delay after its first end, which doubles
    # with each end in `ends_s`, and its maximum.
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    # Ends of one process in so many seconds with which the whole server ends: something is wrong that
    # another start does not mend.
    ends_max: int = 5
    ends_s: float = 30.0
    # Seconds in which a process must end that was told to, beside what it needs to drain.
    stop_s: float = 20.0
    # Bytes of a line that a process writes to its log. What is longer is cut.
    line_bytes_max: int = 64 << 10

    # --- connections ---
    # Connections that were passed to an edge and not taken by it, and those that wait for any edge. A turn of
    # the event loop takes some milliseconds, in which an edge takes four.
    untaken_max: int = 64
    waiting_max: int = 1_024
    # Seconds after which an edge that takes nothing gets no more while others do.
    stalled_s: float = 0.5
    # Seconds for which connections wait for an edge that is being replaced, if others have their share.
    hold_s: float = 1.5
    # Seconds between two looks at what waits.
    look_s: float = 0.1

    # --- messages ---
    # Bytes of a message: `/subscribers.json` has 0.5 MB, an upload of DIDs up to 4. Bytes of all uploads that
    # are kept for new edges. And bytes that wait to be sent to one process: these uploads are the most.
    message_bytes_max: int = 16 << 20
    uploads_bytes_max: int = 64 << 20
    unsent_bytes_max: int = 128 << 20
    # Questions of one process that wait for an answer, and seconds until they are given up.
    questions_max: int = 1_000
    answer_s: float = 5.0
    # The same for what takes the other edges longer: reading a list of 100,000 DIDs.
    upload_s: float = 30.0
    # And for the figures of one process, which are then those that it gave last.
    snapshot_s: float = 1.0

    # --- what is shared ---
    # Seconds for which the figures of all processes are kept; and how often they are gathered without a
    # request, so that little is lost of the counters of a process that is killed.
    view_kept_s: float = 0.5
    gather_every_s: float = 5.0
    # Seconds after which the others know of a connection, a subscriber or a replay of an edge. Limits may be
    # exceeded by what begins in that time.
    share_every_s: float = 0.02
    # Seconds between two notes of which lists of DIDs are in use.
    lists_every_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a whole server."""

    upstream: UpstreamLimits = field(default_factory=UpstreamLimits)
    sources: SourceLimits = field(default_factory=SourceLimits)
    log: LogLimits = field(default_factory=LogLimits)
    delivery: DeliveryLimits = field(default_factory=DeliveryLimits)
    web: WebLimits = field(default_factory=WebLimits)
    runtime: RuntimeLimits = field(default_factory=RuntimeLimits)
    keys: KeyLimits = field(default_factory=KeyLimits)
    workers: WorkerLimits = field(default_factory=WorkerLimits)
    export: ExportLimits = field(default_factory=ExportLimits)
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    supervisor: SupervisorLimits = field(default_factory=SupervisorLimits)

    def of_ingest(self) -> Limits:
        """Return the limits of a server whose events other processes serve."""
        upstream, pds = map(_without_subscribers, (self.upstream, self.sources.pds))
        return replace(self, upstream=upstream, sources=replace(self.sources, pds=pds))


def _without_subscribers(limits: UpstreamLimits) -> UpstreamLimits:
    """Return the limits of an upstream whose events nobody waits for in this process."""
    return replace(
        limits,
        unawaited_rest_s=min(limits.unawaited_rest_s, LINGER_S),
        batch_frames_max=limits.batch_frames_max * UNSHARED_FRAMES,
        turn_s=limits.turn_s * UNSHARED_TURN,
    )
