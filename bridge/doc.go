// Package bridge is the path of an order postback from the stock broker that sends it to the bus that carries it.
//
// # Vocabulary
//
//   - broker: a stock broker (Kite, Dhan, …), never a NATS or Kafka server. Kafka's servers are Kafka brokers, or
//     just brokers in publishers/kafka.
//   - postback: one HTTP POST from a broker, as it arrived.
//   - event: the normalized form of a postback: one state of one order. Package bridge/event defines it.
//   - delivery: an event on its way to a bus, as the spool holds it.
//   - spool: the log on local disk between the 200 and the bus.
//   - bus: NATS JetStream or Kafka.
//   - publisher: the component that carries events from the spool to one bus.
//   - destination: orders, rejects or deadletters: a JetStream stream or a Kafka topic.
//
// # The path
//
//	             bridge/receive.go                                    bridge/pump.go, one per bus
//	POST ──► route ─► verify ─► normalize ─► spool.Append ─► 200      spool.Next ─► Publish ─► Commit
//	         token    broker     broker       one fsync for                        nats │ kafka
//	                  proof      fields       the batch                            retry for ever
//
// # The promise
//
// A postback that was answered 200 is on disk. It reaches every configured bus at least once, in the order this
// replica received it for its order id, however often the bus, the network or postbridge itself fails in
// between, as long as the disk survives. The same state of the same order carries the same event id.
//
// DESIGN.md beside this file walks the path once more and asks at each step: what if we die here?
package bridge
