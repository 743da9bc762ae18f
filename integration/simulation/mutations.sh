#!/bin/bash
# Tells whether the simulation sees what it is there to see: takes one rule after the other out of the product, in a copy,
# and runs seeds until one breaks a promise.
#
#   integration/simulation/mutations.sh [RUNS [PART OF A RULE'S NAME]]
#
# It fails when a rule can be taken out without a seed seeing it, or when its text is no longer where it is looked for.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-5000} only=${2:-}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
unseen=0

# rule NAME FILE PERL [TEST]: PERL changes the text of FILE so that the rule does not hold.
rule() {
	local name=$1 file=$2 change=$3 test=${4:-Simulation} out seed
	[[ $name == *"$only"* ]] || return 0
	perl -0pe "$change" "$file" >"$dir/changed.go"
	if cmp -s "$file" "$dir/changed.go"; then
		printf '%-45s NOT FOUND in %s\n' "$name" "$file"
		unseen=1
		return
	fi
	printf '{"Replace": {"%s": "%s"}}' "$PWD/$file" "$dir/changed.go" >"$dir/overlay.json"
	if ! out=$(go test -c -overlay "$dir/overlay.json" -o "$dir/simulation" ./integration/simulation 2>&1); then
		printf '%-45s DOES NOT COMPILE: %s\n' "$name" "$out"
		unseen=1
		return
	fi
	out=$("$dir/simulation" -test.run "^Test$test\$" -runs="$runs" -consul=$((runs / 5)) -enough=1 2>&1) || true
	seed=$(grep -a -m 1 -o -- '-seed=.*' <<<"$out" || true)
	printf '%-45s %s\n' "$name" "${seed:-NOT SEEN in $runs runs}"
	[ -n "$seed" ] || unseen=1
}

rule 'the lease is checked with every write' integration/simulation/commit_test.go \
	's/c\.lease != nil && w\.holder != c\.lease/false/'
# That due is decided on a fresh read holds twice: a term begins with a reading of everything, and each plan reads again. To take
# one of them out is not seen.
rule 'everybody stays on the recorded order' issuer/plan.go \
	's/if placed != nil && placed\.URL != ""/if false/'
# shellcheck disable=SC2016 # $1 is Perl's
rule 'an order is recorded when it was placed' issuer/order.go \
	's/if err := f\.t\.commit\(ctx, nil, \[\]store\.Op\{store\.Put\(&rec\)\}\); err != nil \{\n(\t\treturn order, fmt\.Errorf\("store order: %w", err\)\n\t\}\n\tf\.t\.log\.Debug\("order placed")/_ = rec\n\tif err != nil {\n$1/'
rule 'an unknown result is settled by reading' issuer/commit.go 's/since < settleFor/false/'
rule 'orderNotReady means poll' issuer/order.go \
	's/return f\.poll\(ctx, acme\.StatusReady, acme\.StatusPending\)/return order, &failure{class: classUnavailable, gone: true, err: refused}/'
rule 'an account is stored before it is registered' issuer/account.go \
	's/t\.commit\(ctx, pre, \[\]store\.Op\{store\.Put\(acc\)\}\)/t.commit(ctx, pre, nil)/'
rule 'tokens are everywhere before the CA looks' issuer/publish.go \
	's/return t\.await\(ctx, p\.record\.Generation\)/return nil/'
rule 'nothing worse takes the place of anything' store/worse.go 's/if !b\.older\(old\)/if true/'
rule 'a resumed order replaces nothing better' issuer/check.go 's/case p\.why != recorded:/case true:/'
# A leader's own copy has nearly always what nodes could offer, so the rule shows where only accounts are copied.
rule 'nodes are asked before an order' issuer/restore.go \
	's/if !r\.suffices\(\) && t\.fleet != nil/if false/; s/\z/\nfunc init() { copied = copied[3:] }\n/'
rule 'nodes are asked about a renew that was found' issuer/plan.go 's/ \|\| !p\.wanted\.RenewAsked\.Equal\(c\.renew\)//'
rule 'an intent that nothing calls for is dropped' issuer/intent.go 's/if !t\.idle\(name, now\)/if true/'

# What package store/consul does for the same promises, in runs with Consul.
# shellcheck disable=SC2016
rule 'Consul: a late write is refused' store/consul/writer.go \
	's/return api\.TxnOps\{check, kvOp.*?\}\n/_ = check\n\treturn api.TxnOps{kvOp(api.KVSet, w.l.s.keys.fence(), []byte(id), 0)}\n/' Consul
rule 'Consul: no answer is no refusal' store/consul/writer.go \
	's/w\.resolve\(b, err\)/answer(b.commits, store.Refusedf("%w", err))/' Consul
rule 'Consul: a lease ends by the clock' store/consul/lease.go 's/if now\.Sub\(renewed\) >= ttl \|\| /if now.Sub(renewed) >= 100*ttl \&\& /' Consul
rule 'Consul: the barrier waits' store/consul/barrier.go 's/len\(owed\) == 0/len(owed) >= 0/' Consul
rule 'Consul: a node acks what is in its table' store/consul/ack.go \
	's/r\.Epoch, r\.Generation = m\.table, min\(m\.acks, m\.highest\)/r.Epoch, r.Generation = epoch, 1<<62/' Consul
rule 'Consul: nodes hear of certificates by the feed' store/consul/follow.go 's/f\.tell\(changes, known\)/_ = changes/' Consul
exit $unseen
