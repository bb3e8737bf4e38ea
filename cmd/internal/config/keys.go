package config

import (
	"fmt"
	"slices"
	"strings"
)

// accepted lists the path of every key that has an effect; <name> stands for a
// name that the operator chooses and [] for the elements of a list. Whatever is
// neither here nor a parent of one of these is an error.
var accepted = []string{
	"listen.public.addr",
	"listen.public.tls.cert",
	"listen.public.tls.key",
	"listen.public.tls.clientCA",
	"listen.public.trustedProxies",
	"listen.admin.addr",
	"listen.admin.token",
	"broker.embedded.dir",
	"broker.embedded.ephemeral",
	"broker.embedded.listen",
	"broker.embedded.clients.listen",
	"broker.embedded.clients.url",
	"broker.embedded.clients.tls.cert",
	"broker.embedded.clients.tls.key",
	"broker.url",
	"broker.credentials",
	"broker.user",
	"broker.password",
	"broker.tls.ca",
	"broker.tls.cert",
	"broker.tls.key",
	"broker.replicas",
	"broker.durability",
	"broker.monitoring",
	"broker.spool.dir",
	"broker.spool.maxBytes",
	"shutdown.grace",
	"secrets.keyvault.suffix",
	"secrets.keyvault.refresh",
	"secrets.keyvault.auth.managedIdentity.clientID",
	"secrets.keyvault.auth.workloadIdentity.clientID",
	"secrets.keyvault.auth.workloadIdentity.tenant",
	"secrets.keyvault.auth.default",
	"storage.maxBytes",
	"storage.dedup.horizon",
	"storage.dedup.memory",
	"storage.replay",
	"storage.onFull",
	"sources.<name>.kind",
	"sources.<name>.environment",
	"sources.<name>.pattern",
	"sources.<name>.rationale",
	"sources.<name>.push.auth",
	"sources.<name>.push.auth.anyOf[].key",
	"sources.<name>.push.auth.anyOf[].sas.keys",
	"sources.<name>.push.auth.anyOf[].sas.resource",
	"sources.<name>.push.auth.anyOf[].entra.tenant",
	"sources.<name>.push.auth.anyOf[].entra.audience",
	"sources.<name>.push.auth.anyOf[].entra.roles",
	"sources.<name>.push.auth.anyOf[].entra.callers",
	"sources.<name>.push.auth.anyOf[].entra.authority",
	"sources.<name>.push.auth.anyOf[].hmac.preset",
	"sources.<name>.push.auth.anyOf[].hmac.secrets",
	"sources.<name>.push.auth.anyOf[].hmac.tolerance",
	"sources.<name>.push.auth.anyOf[].hmac.header",
	"sources.<name>.push.auth.anyOf[].hmac.algorithm",
	"sources.<name>.push.auth.anyOf[].hmac.encoding",
	"sources.<name>.push.auth.anyOf[].hmac.prefix",
	"sources.<name>.push.auth.anyOf[].mtls.cn",
	"sources.<name>.push.auth.anyOf[].mtls.dns",
	"sources.<name>.push.auth.anyOf[].mtls.uri",
	"sources.<name>.push.auth.anyOf[].mtls.sha256",
	"sources.<name>.push.auth.none",
	"sources.<name>.push.auth.allow",
	"sources.<name>.push.origins",
	"sources.<name>.push.subscriptions",
	"sources.<name>.push.validation",
	"sources.<name>.businessKeys.<name>",
	"sources.<name>.mapping.each",
	"sources.<name>.mapping.id",
	"sources.<name>.mapping.type",
	"sources.<name>.mapping.time",
	"sources.<name>.mapping.scope",
	"sources.<name>.mapping.subject",
	"sources.<name>.mapping.name",
	"sources.<name>.mapping.partitionKey",
	"sources.<name>.mapping.legalEntity",
	"sources.<name>.mapping.action",
	"sources.<name>.mapping.extensions.<name>",
	"sources.<name>.poll.odata.url",
	"sources.<name>.poll.odata.table",
	"sources.<name>.poll.odata.entity",
	"sources.<name>.poll.odata.cursor",
	"sources.<name>.poll.odata.key",
	"sources.<name>.poll.odata.modified",
	"sources.<name>.poll.odata.created",
	"sources.<name>.poll.odata.number",
	"sources.<name>.poll.odata.select",
	"sources.<name>.poll.odata.filter",
	"sources.<name>.poll.odata.pageSize",
	"sources.<name>.poll.odata.overlap",
	"sources.<name>.poll.odata.crossCompany",
	"sources.<name>.poll.odata.annotations",
	"sources.<name>.poll.odata.auth.oauth2.tokenURL",
	"sources.<name>.poll.odata.auth.oauth2.clientID",
	"sources.<name>.poll.odata.auth.oauth2.clientSecret",
	"sources.<name>.poll.odata.auth.oauth2.secretIn",
	"sources.<name>.poll.odata.auth.oauth2.cert",
	"sources.<name>.poll.odata.auth.oauth2.key",
	"sources.<name>.poll.odata.auth.oauth2.algorithm",
	"sources.<name>.poll.odata.auth.oauth2.assertion",
	"sources.<name>.poll.odata.auth.oauth2.scope",
	"sources.<name>.poll.odata.auth.oauth2.audience",
	"sources.<name>.poll.odata.auth.oauth2.params.<name>",
	"sources.<name>.poll.odata.auth.oauth2.ca",
	"sources.<name>.poll.odata.auth.managedIdentity.clientID",
	"sources.<name>.poll.odata.auth.managedIdentity.scope",
	"sources.<name>.poll.odata.auth.workloadIdentity.clientID",
	"sources.<name>.poll.odata.auth.workloadIdentity.tenant",
	"sources.<name>.poll.odata.auth.workloadIdentity.scope",
	"sources.<name>.poll.odata.auth.apiKey.header",
	"sources.<name>.poll.odata.auth.apiKey.query",
	"sources.<name>.poll.odata.auth.apiKey.value",
	"sources.<name>.poll.odata.auth.basic.username",
	"sources.<name>.poll.odata.auth.basic.password",
	"sources.<name>.poll.odata.auth.bearer.token",
	"sources.<name>.poll.odata.tls.cert",
	"sources.<name>.poll.odata.tls.key",
	"sources.<name>.poll.odata.tls.ca",
	"sources.<name>.poll.odata.tls.serverName",
	"sources.<name>.poll.odata.maxPage",
	"sources.<name>.poll.delta.url",
	"sources.<name>.poll.delta.method",
	"sources.<name>.poll.delta.query.<name>",
	"sources.<name>.poll.delta.headers.<name>",
	"sources.<name>.poll.delta.body",
	"sources.<name>.poll.delta.start",
	"sources.<name>.poll.delta.items",
	"sources.<name>.poll.delta.cursor",
	"sources.<name>.poll.delta.next",
	"sources.<name>.poll.delta.resume",
	"sources.<name>.poll.delta.more",
	"sources.<name>.poll.delta.key",
	"sources.<name>.poll.delta.version",
	"sources.<name>.poll.delta.versionGrows",
	"sources.<name>.poll.delta.modified",
	"sources.<name>.poll.delta.created",
	"sources.<name>.poll.delta.deleted",
	"sources.<name>.poll.delta.data",
	"sources.<name>.poll.delta.table",
	"sources.<name>.poll.delta.scope",
	"sources.<name>.poll.delta.scopeColumn",
	"sources.<name>.poll.delta.begins",
	"sources.<name>.poll.delta.hold",
	"sources.<name>.poll.delta.expired",
	"sources.<name>.poll.delta.auth.oauth2.tokenURL",
	"sources.<name>.poll.delta.auth.oauth2.clientID",
	"sources.<name>.poll.delta.auth.oauth2.clientSecret",
	"sources.<name>.poll.delta.auth.oauth2.secretIn",
	"sources.<name>.poll.delta.auth.oauth2.cert",
	"sources.<name>.poll.delta.auth.oauth2.key",
	"sources.<name>.poll.delta.auth.oauth2.algorithm",
	"sources.<name>.poll.delta.auth.oauth2.assertion",
	"sources.<name>.poll.delta.auth.oauth2.scope",
	"sources.<name>.poll.delta.auth.oauth2.audience",
	"sources.<name>.poll.delta.auth.oauth2.params.<name>",
	"sources.<name>.poll.delta.auth.oauth2.ca",
	"sources.<name>.poll.delta.auth.managedIdentity.clientID",
	"sources.<name>.poll.delta.auth.managedIdentity.scope",
	"sources.<name>.poll.delta.auth.workloadIdentity.clientID",
	"sources.<name>.poll.delta.auth.workloadIdentity.tenant",
	"sources.<name>.poll.delta.auth.workloadIdentity.scope",
	"sources.<name>.poll.delta.auth.apiKey.header",
	"sources.<name>.poll.delta.auth.apiKey.query",
	"sources.<name>.poll.delta.auth.apiKey.value",
	"sources.<name>.poll.delta.auth.basic.username",
	"sources.<name>.poll.delta.auth.basic.password",
	"sources.<name>.poll.delta.auth.bearer.token",
	"sources.<name>.poll.delta.tls.cert",
	"sources.<name>.poll.delta.tls.key",
	"sources.<name>.poll.delta.tls.ca",
	"sources.<name>.poll.delta.tls.serverName",
	"sources.<name>.poll.delta.maxPage",
	"sources.<name>.poll.sql.driver",
	"sources.<name>.poll.sql.dsn",
	"sources.<name>.poll.sql.auth.managedIdentity.clientID",
	"sources.<name>.poll.sql.auth.workloadIdentity.clientID",
	"sources.<name>.poll.sql.auth.workloadIdentity.tenant",
	"sources.<name>.poll.sql.auth.default",
	"sources.<name>.poll.sql.table.schema",
	"sources.<name>.poll.sql.table.name",
	"sources.<name>.poll.sql.table.key",
	"sources.<name>.poll.sql.table.columns",
	"sources.<name>.poll.sql.table.filter",
	"sources.<name>.poll.sql.table.created",
	"sources.<name>.poll.sql.table.modified",
	"sources.<name>.poll.sql.table.timezone",
	"sources.<name>.poll.sql.cursor.kind",
	"sources.<name>.poll.sql.cursor.column",
	"sources.<name>.poll.sql.cursor.overlap",
	"sources.<name>.poll.sql.pageSize",
	"sources.<name>.poll.sql.maxBytes",
	"sources.<name>.poll.sql.timeout",
	"sources.<name>.poll.every",
	"sources.<name>.poll.every.min",
	"sources.<name>.poll.every.max",
	"sources.<name>.poll.windows[].start",
	"sources.<name>.poll.windows[].for",
	"sources.<name>.poll.windows[].zone",
	"sources.<name>.poll.tolerance",
	"sources.<name>.poll.retry.max",
	"sources.<name>.poll.timeout",
	"sources.<name>.poll.pages",
	"sources.<name>.poll.budget",
	"sources.<name>.poll.baseline",
	"sources.<name>.receive.serviceBus.namespace",
	"sources.<name>.receive.serviceBus.queue",
	"sources.<name>.receive.serviceBus.topic",
	"sources.<name>.receive.serviceBus.subscription",
	"sources.<name>.receive.serviceBus.sessions",
	"sources.<name>.receive.serviceBus.batch",
	"sources.<name>.receive.serviceBus.concurrency",
	"sources.<name>.receive.serviceBus.auth.connectionString",
	"sources.<name>.receive.serviceBus.auth.managedIdentity.clientID",
	"sources.<name>.receive.serviceBus.auth.workloadIdentity.clientID",
	"sources.<name>.receive.serviceBus.auth.workloadIdentity.tenant",
	"sources.<name>.receive.serviceBus.auth.default",
	"sources.<name>.receive.eventGridNamespace.endpoint",
	"sources.<name>.receive.eventGridNamespace.topic",
	"sources.<name>.receive.eventGridNamespace.subscription",
	"sources.<name>.receive.eventGridNamespace.batch",
	"sources.<name>.receive.eventGridNamespace.wait",
	"sources.<name>.receive.eventGridNamespace.auth.key",
	"sources.<name>.receive.eventGridNamespace.auth.managedIdentity.clientID",
	"sources.<name>.receive.eventGridNamespace.auth.workloadIdentity.clientID",
	"sources.<name>.receive.eventGridNamespace.auth.workloadIdentity.tenant",
	"sources.<name>.receive.eventGridNamespace.auth.default",
	"sources.<name>.receive.eventHub.namespace",
	"sources.<name>.receive.eventHub.hub",
	"sources.<name>.receive.eventHub.consumerGroup",
	"sources.<name>.receive.eventHub.start",
	"sources.<name>.receive.eventHub.batch",
	"sources.<name>.receive.eventHub.auth.connectionString",
	"sources.<name>.receive.eventHub.auth.managedIdentity.clientID",
	"sources.<name>.receive.eventHub.auth.workloadIdentity.clientID",
	"sources.<name>.receive.eventHub.auth.workloadIdentity.tenant",
	"sources.<name>.receive.eventHub.auth.default",
	"sources.<name>.complete",
	"sources.<name>.complete.url",
	"sources.<name>.complete.within",
	"sources.<name>.complete.budget",
	"sources.<name>.complete.timeout",
	"sources.<name>.complete.auth.oauth2.tokenURL",
	"sources.<name>.complete.auth.oauth2.clientID",
	"sources.<name>.complete.auth.oauth2.clientSecret",
	"sources.<name>.complete.auth.oauth2.secretIn",
	"sources.<name>.complete.auth.oauth2.cert",
	"sources.<name>.complete.auth.oauth2.key",
	"sources.<name>.complete.auth.oauth2.algorithm",
	"sources.<name>.complete.auth.oauth2.assertion",
	"sources.<name>.complete.auth.oauth2.scope",
	"sources.<name>.complete.auth.oauth2.audience",
	"sources.<name>.complete.auth.oauth2.params.<name>",
	"sources.<name>.complete.auth.oauth2.ca",
	"sources.<name>.complete.auth.managedIdentity.clientID",
	"sources.<name>.complete.auth.managedIdentity.scope",
	"sources.<name>.complete.auth.workloadIdentity.clientID",
	"sources.<name>.complete.auth.workloadIdentity.tenant",
	"sources.<name>.complete.auth.workloadIdentity.scope",
	"sources.<name>.complete.auth.apiKey.header",
	"sources.<name>.complete.auth.apiKey.query",
	"sources.<name>.complete.auth.apiKey.value",
	"sources.<name>.complete.auth.basic.username",
	"sources.<name>.complete.auth.basic.password",
	"sources.<name>.complete.auth.bearer.token",
	"sources.<name>.complete.tls.cert",
	"sources.<name>.complete.tls.key",
	"sources.<name>.complete.tls.ca",
	"sources.<name>.complete.tls.serverName",
	"sources.<name>.deadLetters.blob.account",
	"sources.<name>.deadLetters.blob.container",
	"sources.<name>.deadLetters.blob.prefix",
	"sources.<name>.deadLetters.blob.every",
	"sources.<name>.deadLetters.blob.keep",
	"sources.<name>.deadLetters.blob.auth.connectionString",
	"sources.<name>.deadLetters.blob.auth.sas",
	"sources.<name>.deadLetters.blob.auth.managedIdentity.clientID",
	"sources.<name>.deadLetters.blob.auth.workloadIdentity.clientID",
	"sources.<name>.deadLetters.blob.auth.workloadIdentity.tenant",
	"sources.<name>.deadLetters.blob.auth.default",
	"sources.<name>.limits.body",
	"sources.<name>.limits.rate",
	"sources.<name>.limits.concurrency",
	"subscribers.<name>.subjects",
	"subscribers.<name>.filter",
	"subscribers.<name>.transform",
	"subscribers.<name>.deliver.webhook.url",
	"subscribers.<name>.deliver.webhook.endpoint",
	"subscribers.<name>.deliver.webhook.path",
	"subscribers.<name>.deliver.webhook.format",
	"subscribers.<name>.deliver.webhook.headers.<name>",
	"subscribers.<name>.deliver.webhook.handshake",
	"subscribers.<name>.deliver.webhook.handshake.origin",
	"subscribers.<name>.deliver.webhook.sign",
	"subscribers.<name>.deliver.webhook.sign.algorithm",
	"subscribers.<name>.deliver.webhook.sign.keys",
	"subscribers.<name>.deliver.webhook.sign.overlap",
	"subscribers.<name>.deliver.webhook.auth.oauth2.tokenURL",
	"subscribers.<name>.deliver.webhook.auth.oauth2.clientID",
	"subscribers.<name>.deliver.webhook.auth.oauth2.clientSecret",
	"subscribers.<name>.deliver.webhook.auth.oauth2.secretIn",
	"subscribers.<name>.deliver.webhook.auth.oauth2.cert",
	"subscribers.<name>.deliver.webhook.auth.oauth2.key",
	"subscribers.<name>.deliver.webhook.auth.oauth2.algorithm",
	"subscribers.<name>.deliver.webhook.auth.oauth2.assertion",
	"subscribers.<name>.deliver.webhook.auth.oauth2.scope",
	"subscribers.<name>.deliver.webhook.auth.oauth2.audience",
	"subscribers.<name>.deliver.webhook.auth.oauth2.params.<name>",
	"subscribers.<name>.deliver.webhook.auth.oauth2.ca",
	"subscribers.<name>.deliver.webhook.auth.managedIdentity.clientID",
	"subscribers.<name>.deliver.webhook.auth.managedIdentity.scope",
	"subscribers.<name>.deliver.webhook.auth.workloadIdentity.clientID",
	"subscribers.<name>.deliver.webhook.auth.workloadIdentity.tenant",
	"subscribers.<name>.deliver.webhook.auth.workloadIdentity.scope",
	"subscribers.<name>.deliver.webhook.auth.apiKey.header",
	"subscribers.<name>.deliver.webhook.auth.apiKey.query",
	"subscribers.<name>.deliver.webhook.auth.apiKey.value",
	"subscribers.<name>.deliver.webhook.auth.basic.username",
	"subscribers.<name>.deliver.webhook.auth.basic.password",
	"subscribers.<name>.deliver.webhook.auth.bearer.token",
	"subscribers.<name>.deliver.webhook.tls.cert",
	"subscribers.<name>.deliver.webhook.tls.key",
	"subscribers.<name>.deliver.webhook.tls.ca",
	"subscribers.<name>.deliver.webhook.tls.serverName",
	"subscribers.<name>.deliver.pull",
	"subscribers.<name>.deliver.pull.lockDuration",
	"subscribers.<name>.deliver.pull.maxDeliveryCount",
	"subscribers.<name>.deliver.pull.keys",
	"subscribers.<name>.deliver.pull.overlap",
	"subscribers.<name>.deliver.pull.entra.tenant",
	"subscribers.<name>.deliver.pull.entra.audience",
	"subscribers.<name>.deliver.pull.entra.roles",
	"subscribers.<name>.deliver.pull.entra.callers",
	"subscribers.<name>.deliver.pull.entra.authority",
	"subscribers.<name>.deliver.eventGrid.endpoint",
	"subscribers.<name>.deliver.eventGrid.schema",
	"subscribers.<name>.deliver.eventGrid.auth.key",
	"subscribers.<name>.deliver.eventGrid.auth.sas",
	"subscribers.<name>.deliver.eventGrid.auth.managedIdentity.clientID",
	"subscribers.<name>.deliver.eventGrid.auth.workloadIdentity.clientID",
	"subscribers.<name>.deliver.eventGrid.auth.workloadIdentity.tenant",
	"subscribers.<name>.deliver.eventGrid.auth.default",
	"subscribers.<name>.deliver.eventGridNamespace.endpoint",
	"subscribers.<name>.deliver.eventGridNamespace.topic",
	"subscribers.<name>.deliver.eventGridNamespace.auth.key",
	"subscribers.<name>.deliver.eventGridNamespace.auth.managedIdentity.clientID",
	"subscribers.<name>.deliver.eventGridNamespace.auth.workloadIdentity.clientID",
	"subscribers.<name>.deliver.eventGridNamespace.auth.workloadIdentity.tenant",
	"subscribers.<name>.deliver.eventGridNamespace.auth.default",
	"subscribers.<name>.deliver.serviceBus.namespace",
	"subscribers.<name>.deliver.serviceBus.queue",
	"subscribers.<name>.deliver.serviceBus.topic",
	"subscribers.<name>.deliver.serviceBus.session",
	"subscribers.<name>.deliver.serviceBus.auth.connectionString",
	"subscribers.<name>.deliver.serviceBus.auth.managedIdentity.clientID",
	"subscribers.<name>.deliver.serviceBus.auth.workloadIdentity.clientID",
	"subscribers.<name>.deliver.serviceBus.auth.workloadIdentity.tenant",
	"subscribers.<name>.deliver.serviceBus.auth.default",
	"subscribers.<name>.deliver.nats",
	"subscribers.<name>.deliver.nats.keys",
	"subscribers.<name>.deliver.nats.overlap",
	"subscribers.<name>.deliver.nats.ackWait",
	"subscribers.<name>.deliver.nats.maxDeliver",
	"subscribers.<name>.deliver.nats.maxAckPending",
	"subscribers.<name>.drain",
	"subscribers.<name>.start",
	"subscribers.<name>.ordering",
	"subscribers.<name>.limits.concurrency",
	"subscribers.<name>.limits.timeout",
	"subscribers.<name>.limits.rate",
	"subscribers.<name>.limits.batch.events",
	"subscribers.<name>.limits.batch.bytes",
	"subscribers.<name>.limits.batch.linger",
	"subscribers.<name>.limits.backlog.age",
	"subscribers.<name>.limits.backlog.bytes",
	"subscribers.<name>.retry.schedule",
	"subscribers.<name>.retry.maxAge",
	"subscribers.<name>.retry.maxRetryAfter",
	"subscribers.<name>.retry.faults.<name>.schedule",
	"subscribers.<name>.retry.faults.<name>.giveUp",
	"subscribers.<name>.breaker.failures",
	"subscribers.<name>.breaker.ratio",
	"subscribers.<name>.breaker.window",
	"subscribers.<name>.breaker.openFor",
	"subscribers.<name>.breaker.maxOpenFor",
	"subscribers.<name>.breaker.probes",
	"subscribers.<name>.breaker.rampUp",
	"endpoints.<name>.url",
	"egress.allow",
	"egress.proxy",
	"egress.noProxy",
	"egress.proxyResolves",
}

// oneOrMore are mappings of which there may be a list as well; what stands in its
// elements are the same keys.
var oneOrMore = []string{"sources.<name>.poll"}

// later holds the keys of capabilities still to come. They are refused by name:
// who writes "filter" must not believe that events are filtered, nor search for
// a typing error.
var later = map[string]string{
	"listen.admin.tls":   "TLS is not part of this version yet; keep the admin address on loopback or behind a proxy, and remove the key",
	"listen.admin.entra": "sign-in with Entra is not part of this version yet; use listen.admin.token",

	"sources.<name>.reconcile":            "reconciliation is not part of this version yet; remove the key",
	"sources.<name>.keepOriginal":         "keeping the original body is not part of this version yet; remove the key",
	"sources.<name>.push.auth.anyOf[].ip": "authentication by address is not part of this version yet; use allow, which narrows the other methods to networks",
	"subscribers.<name>.deliver.sse":      "server-sent events are a way to fetch: use pull",

	"subscribers.<name>.deliver.webhook.transform": "transforms (jq) are not part of this version yet; remove the key",
}

// named says whether the keys below the pattern are names the operator chooses.
func named(pattern string) bool {
	return leaf(below(pattern, "<name>")) || parent(below(pattern, "<name>"))
}

// leaf says whether the pattern is an accepted key itself, no parent of one.
func leaf(pattern string) bool { return slices.Contains(accepted, pattern) }

// parent says whether keys or elements below the pattern are accepted.
func parent(pattern string) bool {
	return slices.ContainsFunc(accepted, func(a string) bool {
		rest, ok := strings.CutPrefix(a, pattern)
		return ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "[]"))
	})
}

// keysOf lists the keys known directly below a pattern, in the table's order.
func keysOf(pattern string) []string {
	var keys []string
	for _, a := range accepted {
		rest, ok := strings.CutPrefix(a, below(pattern, ""))
		if key := rest[:len(rest)-len(strings.TrimLeft(rest, nameLetters))]; ok && key != "" && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

const nameLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// below joins a path and a key.
func below(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// advice tells what could have been meant by an unknown key, and that key's
// pattern when there is exactly one.
func advice(pattern, key string) (sentence, meant string) {
	keys := keysOf(pattern)
	best, distance := "", 3 // more than two edits is another word
	for _, k := range keys {
		n := edits(strings.ToLower(k), strings.ToLower(key))
		if n < distance && n < len(k)-1 && n < len(key) {
			best, distance = k, n
		}
	}
	// The right key on too high a level: timeout for limits.timeout. It counts more
	// than another one that needs two edits.
	var deeper []string
	for _, a := range accepted {
		rest, ok := strings.CutPrefix(a, below(pattern, ""))
		before, _, found := strings.Cut(rest+".", "."+key+".")
		if fix := fmt.Sprintf("%q", below(before, key)); ok && found && !strings.ContainsAny(before, "<[") && !slices.Contains(deeper, fix) {
			deeper = append(deeper, fix)
		}
	}
	if best != "" && (distance == 1 || len(deeper) == 0) {
		return fmt.Sprintf("did you mean %q?", best), below(pattern, best)
	}
	if len(deeper) > 0 {
		return "did you mean " + strings.Join(deeper, " or ") + "?", ""
	}
	return "known here: " + strings.Join(keys, ", "), ""
}

// edits is the Levenshtein distance of two texts, swaps of neighbours counting
// as one edit.
func edits(a, b string) int {
	if len(a) > 40 || len(b) > 40 {
		return len(a) + len(b)
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			n := min(rows[i-1][j], rows[i][j-1]) + 1
			if a[i-1] == b[j-1] {
				n = min(n, rows[i-1][j-1])
			} else {
				n = min(n, rows[i-1][j-1]+1)
			}
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				n = min(n, rows[i-2][j-2]+1)
			}
			rows[i][j] = n
		}
	}
	return rows[len(a)][len(b)]
}
