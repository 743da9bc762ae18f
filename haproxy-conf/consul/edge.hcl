# What a sidecar of role "edge" may do in Consul: serve, and nothing else. Put the sidecar's name (SPOACME_NODE) for NODE, the name
# of the Consul agent that it talks to for AGENT, and the prefix of SPOACME_STORE for le.

# Everything that is served, and what is wanted. Private keys in it are sealed.
key_prefix "le/" {
  policy = "read"
}

# Not the account, nor orders in flight.
key_prefix "le/account/" {
  policy = "deny"
}
key_prefix "le/order/" {
  policy = "deny"
}

# What this node says about itself, and no other node.
key "le/ack/NODE" {
  policy = "write"
}
key_prefix "le/nodes/NODE/" {
  policy = "write"
}
key "le/demand/NODE" {
  policy = "write"
}

# spoacme issue, renew and remove on this node. Leave it out where nobody should give such commands.
key_prefix "le/request/" {
  policy = "write"
}

# Being known to be alive. A token of one host can destroy the sessions of its own Consul agent only.
session "AGENT" {
  policy = "write"
}

# The node on Consul's own pages.
service "spoacme" {
  policy = "write"
}
