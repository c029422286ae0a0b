// Package queue hands shards to workers and collects what they make, through a NATS JetStream server inside the process
// that merges (the coordinator).
//
// Shards wait in a work-queue stream, one message each, under their keys; a message is acknowledged when its result is
// stored, and given to another worker when its own falls silent (no heartbeat for Options.Lost). A result is an object, and
// a marker in a key-value bucket that is created if absent: of two workers that made the same shard the first one counts,
// and both made the same bytes. The coordinator takes results in the order of the shards, checks them, merges them, and
// forgets them. With a store folder all of this outlives the process: started again on the same folder and the same job it
// goes on, publishing only what is neither done nor waiting (the server's own protection against doubles does not know
// messages that were acknowledged before a restart).
//
// Nothing listens unless Options.Listen says so. Who listens wants a token or a key pair of every worker, and what workers
// may do there is no more than the work asks for.
package queue
