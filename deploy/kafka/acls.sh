#!/bin/sh
# ACLs on a Kafka cluster for postbridge and its consumers, each with least privilege. kafka-acls.sh must be in the PATH; pass
# its login options as arguments of this script:
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

# postbridge. If you remove Create, create the topics yourself and set POSTBRIDGE_KAFKA_CREATE_TOPICS=false. Read is for
# lookups of stored events, DescribeConfigs for 'postbridge doctor', which checks the settings of the topics. Before Kafka
# 2.8 edge and reconcile also need: allow edge --operation IdempotentWrite --cluster
allow edge --operation Write --operation Describe --operation Read --operation Create --operation DescribeConfigs \
	--topic orders --topic rejects --topic deadletters

# 'postbridge reconcile'. The rights of edge include these, but a login of its own can be revoked alone. Read is for the last
# events of the day's orders; it reads in no group.
allow reconcile --operation Write --operation Describe --operation Read \
	--topic orders --topic rejects --topic deadletters

# A strategy engine: the group "strategy" on orders. It cannot publish events, nor read other topics.
allow strategy --operation Read --topic orders
allow strategy --operation Read --group strategy

# A risk system: the group "risk" on rejects.
allow risk --operation Read --topic rejects
allow risk --operation Read --group risk
