// Prints the events of a Jetstream, one JSON object a line, with the Go server's own client (pkg/client).
//
//	client URL COMPRESS CURSOR [COLLECTION…]
//
// COMPRESS is true or false; a CURSOR of 0 means live. The client does not reconnect by itself, so this program does,
// one microsecond after the last event.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/bluesky-social/jetstream/pkg/client"
	"github.com/bluesky-social/jetstream/pkg/client/schedulers/sequential"
	"github.com/bluesky-social/jetstream/pkg/models"
)

func main() {
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	cursor, err := strconv.ParseInt(os.Args[3], 10, 64)
	if err != nil {
		panic(err)
	}
	handle := func(_ context.Context, event *models.Event) error {
		cursor = event.TimeUS + 1
		line, err := json.Marshal(event)
		if err == nil {
			fmt.Println(string(line))
		}
		return err
	}
	scheduler := sequential.NewScheduler("test", logger, handle)
	for {
		config := client.DefaultClientConfig()
		config.WebsocketURL = os.Args[1]
		config.Compress = os.Args[2] == "true"
		config.WantedCollections = os.Args[4:]
		jetstream, err := client.NewClient(config, logger, scheduler)
		if err != nil {
			panic(err)
		}
		var start *int64
		if cursor > 0 {
			start = &cursor
		}
		if err := jetstream.ConnectAndRead(context.Background(), start); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
