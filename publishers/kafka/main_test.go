package kafka_test

import (
	"os"
	"testing"

	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

func TestMain(m *testing.M) { os.Exit(kafkatest.Main(m)) }
