// Command kafka runs Apache Kafka on this machine, for trying out postbridge.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "kafka:", err)
		os.Exit(1)
	}
}

// howTo explains how to use the broker. The pattern matches the topics of all prefixes; the consumer looks for new
// topics every second.
const howTo = `Kafka %[1]s listens on %[2]s. For postbridge:

  export POSTBRIDGE_PUBLISH=kafka POSTBRIDGE_KAFKA_BROKERS=%[2]s

To read what it publishes, with partition, key and headers:

  java -cp '%[3]s/*' org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server %[2]s \
    --include '(.*\.)?(orders|rejects|deadletters)' --from-beginning --command-property metadata.max.age.ms=1000 \
    --formatter-property print.partition=true --formatter-property print.key=true \
    --formatter-property print.headers=true

Its data and logs are in %[4]s. Ctrl-C stops it.
`

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("kafka", flag.ContinueOnError)
	listen := fs.String("listen", "127.0.0.1:9092", "listen on this host:port")
	dir := fs.String("dir", "data/kafka", "directory for data and logs; kept for the next run")
	fetch := fs.Bool("fetch", false, "only fetch the jars, so that later runs need no network")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return errors.New("no arguments are allowed, only flags; run with -help")
	}
	jars, err := kafkatest.Jars(ctx)
	if err != nil || *fetch {
		return err
	}
	c, err := kafkatest.Start(ctx, kafkatest.Options{Dir: *dir, Listen: *listen})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w; choose another port: make kafka KAFKA_LISTEN=127.0.0.1:9192", err)
		}
		return err
	}
	defer c.Close()
	data, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, howTo, kafkatest.Version, c.Brokers()[0], jars, data)
	if err := c.Wait(ctx); err != nil {
		return err // Kafka has exited
	}
	return c.Stop(0)
}
