package kafka

import (
	"context"
	"fmt"
	"strings"

	"github.com/segmentio/kafka-go/sasl"
)

// oauthBearer is the SASL mechanism OAUTHBEARER of RFC 7628, which kafka-go lacks.
type oauthBearer struct {
	token      string
	extensions []string // name=value
}

// Name implements sasl.Mechanism.
func (oauthBearer) Name() string { return mechanismOAuth }

// Start implements sasl.Mechanism: the token is all that the broker needs.
func (m oauthBearer) Start(context.Context) (sasl.StateMachine, []byte, error) {
	const separator = "\x01"
	fields := append([]string{"n,,", "auth=Bearer " + m.token}, m.extensions...)
	return m, []byte(strings.Join(fields, separator) + separator + separator), nil
}

// Next implements sasl.StateMachine. Kafka answers with nothing, or with why it refuses the token, as JSON.
func (oauthBearer) Next(_ context.Context, answer []byte) (done bool, response []byte, err error) {
	if len(answer) > 0 {
		return false, nil, fmt.Errorf("the broker refuses the token: %q", answer)
	}
	return true, nil, nil
}
