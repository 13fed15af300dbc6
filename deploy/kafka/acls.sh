#!/bin/sh
# Rights on a Kafka cluster for postbridge and its consumers, each with what it needs and no more. Kafka's own tool has to be in
# the PATH; what else it needs to log in as an operator goes behind this script's name:
#
#   BOOTSTRAP=kafka-1:9093 deploy/kafka/acls.sh --command-config operator.properties
set -eu
: "${BOOTSTRAP:?set it to a Kafka broker, host:port}"

allow() {
	principal=$1
	shift
	kafka-acls.sh --bootstrap-server "$BOOTSTRAP" $options --add --allow-principal "User:$principal" "$@"
}
options=$*

# postbridge. Without Create the operator makes the topics, and POSTBRIDGE_KAFKA_CREATE_TOPICS is false. Read is for looking up
# what is stored already, DescribeConfigs for 'postbridge doctor' to see what the topics promise.
allow edge --operation Write --operation Describe --operation Read --operation Create --operation DescribeConfigs \
	--topic orders --topic rejects --topic deadletters

# A strategy engine: the group "strategy" on orders. It cannot forge an order's event, nor read what others read.
allow strategy --operation Read --topic orders
allow strategy --operation Read --group strategy

# A risk system: the group "risk" on rejects.
allow risk --operation Read --topic rejects
allow risk --operation Read --group risk
