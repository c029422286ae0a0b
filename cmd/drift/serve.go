package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/queue"
	"drift/cmd/drift/internal/shard"
	"drift/internal/kernels"
	"drift/models/diffusers"
)

func serveVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "run a line of sample, bench, search or metrics stats with workers on other machines",
		UsageText: "[flags] VERB [flags of the verb]",
		Description: "Cuts the line into shards and hands them to the workers that connect: drift worker --url nats://HOST:PORT --token-file F, on as many machines as there are. The results are those of the line alone, bit for bit, on the kernel tier of this machine (--tier in the line names another). " +
			"Workers may come and go; the shard of one that falls silent goes to another. Stopped in whatever way, the same line again goes on. Files that the line names travel to the workers that lack them. --workers in the line adds workers of this process.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1:4222", Usage: "address for workers (`HOST:PORT`), default 127.0.0.1:4222; port 0 picks one"},
			&cli.StringFlag{Name: "token-file", Usage: "file with the secret that workers must show (`F`)"},
			&cli.StringFlag{Name: "keys-file", Usage: "file with public nkeys of workers, one per line, in place of a token or beside it (`F`)"},
			&cli.BoolFlag{Name: "no-token", Usage: "let any process of this machine work; refused on other addresses than the loopback"},
			&cli.StringFlag{Name: "tls-cert", Usage: "certificate of this server (`F.pem`)"},
			&cli.StringFlag{Name: "tls-key", Usage: "its key (`F.pem`)"},
			&cli.StringFlag{Name: "tls-ca", Usage: "authority that workers' own certificates must be signed by (`F.pem`)"},
			&cli.StringFlag{Name: "store", Usage: "folder that keeps queue and results until the line is done (`DIR`), default OUT.queue"},
			&cli.DurationFlag{Name: "lost-after", Value: 30 * time.Second, Usage: "give the shard of a worker to another when it is silent for so long (`TIME`), default 30s"},
		},
		Action: func(c *cli.Context) error { return a.serve(c) },
	}
}

func workerVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "worker", Usage: "make shards for a drift serve on this or another machine",
		Description: "Works until the job of the server is done. Start it before or after the server, as often as wanted; --threads says how much of the machine it takes. " +
			"A worker whose version, kernel tier or files would give other bits is refused. It reads and writes below --cache only.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "url", Value: "nats://127.0.0.1:4222", Usage: "server, nats://HOST:PORT, or tls://HOST:PORT (`URL`)"},
			&cli.StringFlag{Name: "token-file", Usage: "file with the server's secret (`F`)"},
			&cli.StringFlag{Name: "key-file", Usage: "file with the seed of this worker's nkey, in place of a token (`F`)"},
			&cli.StringFlag{Name: "tls-ca", Usage: "authority of the server's certificate (`F.pem`), default: those of this machine"},
			&cli.StringFlag{Name: "tls-cert", Usage: "certificate of this worker, where the server wants one (`F.pem`)"},
			&cli.StringFlag{Name: "tls-key", Usage: "its key (`F.pem`)"},
			&cli.StringFlag{Name: "cache", Usage: "folder for files that come from the server, kept by their hashes (`DIR`), default ~/.cache/drift"},
			&cli.StringFlag{Name: "name", Usage: "of this worker (`NAME`), default HOST/PID"},
			&cli.DurationFlag{Name: "patience", Value: 5 * time.Minute, Usage: "give up when the server is away for so long (`TIME`), default 5m"},
		},
		Action: func(c *cli.Context) error { return a.work(c) },
	}
}

// secret reads a token: one line of 8 characters at least.
func secret(flag, name string) (string, error) {
	b, err := job.ReadSmall(name)
	if err != nil {
		return "", err
	}
	t := strings.TrimSpace(string(b))
	if len(t) < 8 || len(t) > 4096 || strings.ContainsAny(t, "\r\n") {
		return "", usagef("--%s %s: want one line of 8 to 4096 characters", flag, name)
	}
	return t, nil
}

// publicKeys reads public nkeys of users, one per line; blank lines and what follows a # are left out.
func publicKeys(flag, name string) ([]string, error) {
	b, err := job.ReadSmall(name)
	if err != nil {
		return nil, err
	}
	keys, err := parseKeys(b)
	if err != nil {
		return nil, usagef("--%s %s: %w", flag, name, err)
	}
	return keys, nil
}

func parseKeys(text []byte) ([]string, error) {
	var out []string
	for n, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if !nkeys.IsValidPublicUserKey(line) {
			return nil, fmt.Errorf("line %d is no public key of a user (U...)", n+1)
		}
		out = append(out, line)
	}
	if len(out) == 0 {
		return nil, errors.New("no key")
	}
	return out, nil
}

// authority reads certificates.
func authority(flag, name string) (*x509.CertPool, error) {
	b, err := job.ReadSmall(name)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, usagef("--%s %s: no certificate in it", flag, name)
	}
	return pool, nil
}

// certificate reads --tls-cert and --tls-key; nil without them.
func certificate(c *cli.Context) ([]tls.Certificate, error) {
	if c.IsSet("tls-cert") != c.IsSet("tls-key") {
		return nil, usagef("--tls-cert and --tls-key want each other")
	}
	if !c.IsSet("tls-cert") {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.String("tls-cert"), c.String("tls-key"))
	if err != nil {
		return nil, badUse("tls-cert", err)
	}
	return []tls.Certificate{pair}, nil
}

// serve runs a line with a server for workers.
func (a *app) serve(c *cli.Context) error {
	line := c.Args().Slice()
	if len(line) == 0 {
		return usagef("serve wants a line to run, such as: drift serve --token-file F sample --count 50000 --out DIR")
	}
	o := queue.Options{Listen: c.String("listen"), Lost: c.Duration("lost-after"), Open: c.Bool("no-token")}
	host, _, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return usagef("--listen %s: want HOST:PORT", o.Listen)
	}
	if o.Lost < 100*time.Millisecond {
		return usagef("--lost-after %v: want 100ms or more", o.Lost)
	}
	if c.IsSet("token-file") {
		if o.Token, err = secret("token-file", c.String("token-file")); err != nil {
			return err
		}
	}
	if c.IsSet("keys-file") {
		if o.Keys, err = publicKeys("keys-file", c.String("keys-file")); err != nil {
			return err
		}
	}
	shut := o.Token != "" || len(o.Keys) > 0
	switch {
	case shut && o.Open:
		return usagef("--no-token and --token-file or --keys-file exclude each other")
	case !shut && !o.Open:
		return &hint{usagef("serve wants --token-file or --keys-file: whoever knows the secret may work"), "head -c 32 /dev/urandom | base64 > token; or, on this machine only, --no-token"}
	case !shut && !queue.Loopback(host):
		return usagef("--no-token is for the loopback (127.0.0.1) only, not for %s", o.Listen)
	}
	pair, err := certificate(c)
	if err != nil {
		return err
	}
	if pair != nil {
		o.TLS = &tls.Config{Certificates: pair, MinVersion: tls.VersionTLS12}
		if c.IsSet("tls-ca") {
			if o.TLS.ClientCAs, err = authority("tls-ca", c.String("tls-ca")); err != nil {
				return err
			}
			o.TLS.ClientAuth = tls.RequireAndVerifyClientCert
		}
	} else if c.IsSet("tls-ca") {
		return usagef("--tls-ca wants --tls-cert and --tls-key")
	} else if !queue.Loopback(host) {
		a.warn("--listen %s without --tls-cert: the secret crosses the network in clear", o.Listen)
	}
	for _, flag := range []string{"json", "quiet"} {
		if c.Bool(flag) {
			line = append(line[:1:1], append([]string{"--" + flag}, line[1:]...)...)
		}
	}
	for _, flag := range []string{"threads", "ort-lib"} {
		if c.IsSet(flag) {
			line = append(line[:1:1], append([]string{"--" + flag, fmt.Sprint(c.Value(flag))}, line[1:]...)...)
		}
	}
	arranged, err := arrange(a.cli(), line, a.getenv)
	if err != nil {
		return err
	}
	if err := a.sharded(arranged); err != nil {
		return err
	}
	if slices.Contains(arranged, "--resume=true") && arranged[0] == "sample" {
		return usagef("serve: leave --resume out: the same line again goes on")
	}
	a.hiring = func(k *crew, inner *cli.Context, open queue.Doer) error {
		args, list, err := a.travel(a.shardLine())
		if err != nil {
			return err
		}
		o.Store = storeOf(inner, c)
		if err := os.MkdirAll(o.Store, 0o777); err != nil {
			return err
		}
		s, err := queue.Start(o)
		if err != nil {
			return err
		}
		addr := s.Addr()
		a.say("drift: workers connect with: drift worker --url %s://%s%s", map[bool]string{true: "tls", false: "nats"}[o.TLS != nil], addr, map[bool]string{true: " --token-file F"}[o.Token != ""])
		if a.json {
			a.emit(map[string]any{"event": "listen", "address": addr, "store": o.Store})
		}
		err = a.staff(k, inner, open, s, queue.Job{Args: args, Files: list}, func(ok bool) error {
			if ok {
				waitFor(3*time.Second, func() bool { return s.Clients() == 0 })
			}
			s.Close()
			if !ok {
				return nil
			}
			err := os.RemoveAll(filepath.Join(o.Store, "jetstream")) // what the server keeps, and nothing else
			if left, e := os.ReadDir(o.Store); e == nil && len(left) == 0 {
				err = errors.Join(err, os.Remove(o.Store))
			}
			return err
		})
		if errors.Is(err, queue.ErrOther) {
			return &hint{usagef("%s holds the queue of another line", o.Store), "choose another --store, or remove it"}
		}
		return err
	}
	return a.run(c.Context, line)
}

// notFiles are flags that name what a line writes.
var notFiles = []string{"out", "store", "compare"}

// separators stand between names in values of flags.
const separators = ",;:=@+*()| \""

// travel finds the files and folders that an arranged line names, for workers that lack them. Names that lead out of this
// folder get a new one below it.
func (a *app) travel(line []string) ([]string, []queue.File, error) {
	var list []queue.File
	seen := map[string]string{}
	name := func(piece string) (string, error) {
		if piece == "" || strings.Trim(piece, "./") == "" {
			return piece, nil
		}
		if as, ok := seen[piece]; ok {
			return as, nil
		}
		source := piece
		if _, err := os.Stat(piece); err != nil {
			if source, err = diffusers.Locate(piece, diffusers.Options{CacheDir: a.hub()}); err != nil || source == piece {
				seen[piece] = piece
				return piece, nil
			}
		}
		as := filepath.ToSlash(filepath.Clean(piece))
		if !filepath.IsLocal(filepath.FromSlash(as)) {
			abs, err := filepath.Abs(piece)
			if err != nil {
				return "", err
			}
			sum := sha256.Sum256([]byte(abs))
			as = "files/" + hex.EncodeToString(sum[:4]) + "/" + filepath.Base(abs)
		}
		files, err := queue.Files(source, as)
		if err != nil {
			return "", err
		}
		list = append(list, files...)
		for _, beside := range companions(source) { // without which an ONNX file says nothing
			files, err := queue.Files(filepath.Join(filepath.Dir(source), beside), path.Join(path.Dir(as), filepath.ToSlash(beside)))
			if err != nil {
				return "", err
			}
			for _, f := range files {
				if !slices.ContainsFunc(list, func(o queue.File) bool { return o.Path == f.Path }) {
					list = append(list, f)
				}
			}
		}
		seen[piece] = as
		return as, nil
	}
	// every worker has an ONNX Runtime of its own, for its own system
	line = slices.DeleteFunc(slices.Clone(line), func(s string) bool { return strings.HasPrefix(s, "--ort-lib=") })
	out := slices.Clone(line)
	_, verb := leafOf(a.cli(), line)
	for i := len(strings.Fields(verb)); i < len(line); i++ {
		flag, value, ok := strings.Cut(line[i], "=")
		if !strings.HasPrefix(flag, "--") {
			flag, value, ok = "", line[i], true
		}
		if !ok || slices.Contains(notFiles, strings.TrimPrefix(flag, "--")) {
			continue
		}
		whole, err := name(value)
		if err != nil {
			return nil, nil, err
		}
		if whole == value && seen[value] == value { // perhaps parts of it are names
			var b strings.Builder
			for len(value) > 0 {
				n := strings.IndexAny(value, separators)
				if n < 0 {
					n = len(value)
				}
				part, err := name(value[:n])
				if err != nil {
					return nil, nil, err
				}
				b.WriteString(part)
				if n < len(value) {
					b.WriteByte(value[n])
					n++
				}
				value = value[n:]
			}
			whole = b.String()
		}
		if out[i] = whole; flag != "" {
			out[i] = flag + "=" + whole
		}
	}
	return out, list, nil
}

// cacheDir is where files from elsewhere are kept.
func (a *app) cacheDir(c *cli.Context) (string, error) {
	if d := c.String("cache"); d != "" {
		return filepath.Abs(d)
	}
	if d := a.getenv("XDG_CACHE_HOME"); d != "" {
		return filepath.Join(d, "drift"), nil
	}
	if d := a.getenv("HOME"); d != "" {
		return filepath.Join(d, ".cache", "drift"), nil
	}
	return "", usagef("worker wants --cache: there is no home folder")
}

// work makes shards for a server.
func (a *app) work(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	u, err := url.Parse(c.String("url"))
	if err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls" {
		return usagef("--url %s: want nats://HOST:PORT or tls://HOST:PORT", c.String("url"))
	}
	if u.User != nil {
		return usagef("--url: leave the secret out of it: --token-file")
	}
	if c.Duration("patience") <= 0 {
		return usagef("--patience %v: want more than 0", c.Duration("patience"))
	}
	ctx, cancel := context.WithCancelCause(c.Context)
	defer cancel(nil)
	go func() {
		select {
		case <-a.stop:
			cancel(job.ErrStopped)
		case <-ctx.Done():
		}
	}()
	patience := c.Duration("patience")
	away := time.AfterFunc(patience, func() { cancel(fmt.Errorf("the server %s is away for %v", u.Host, patience)) })
	opts := []nats.Option{
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond), nats.IgnoreAuthErrorAbort(),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { away.Reset(patience) }),
		nats.ConnectHandler(func(*nats.Conn) { away.Stop() }), nats.ReconnectHandler(func(*nats.Conn) { away.Stop() }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrAuthorization) {
				cancel(errors.New("the server does not take this token or key"))
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if errors.Is(err, nats.ErrAuthorization) {
				cancel(errors.New("the server does not take this token or key"))
			}
		}),
	}
	switch {
	case c.IsSet("token-file") && c.IsSet("key-file"):
		return usagef("--token-file and --key-file exclude each other")
	case c.IsSet("token-file"):
		t, err := secret("token-file", c.String("token-file"))
		if err != nil {
			return err
		}
		opts = append(opts, nats.UserInfo("worker", t))
	case c.IsSet("key-file"):
		o, err := nats.NkeyOptionFromSeed(c.String("key-file"))
		if err != nil {
			return badUse("key-file", err)
		}
		opts = append(opts, o)
	}
	pair, err := certificate(c)
	if err != nil {
		return err
	}
	if u.Scheme == "tls" {
		t := &tls.Config{Certificates: pair, MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}
		if c.IsSet("tls-ca") {
			if t.RootCAs, err = authority("tls-ca", c.String("tls-ca")); err != nil {
				return err
			}
		}
		opts = append(opts, nats.Secure(t))
	} else if c.IsSet("tls-ca") || pair != nil {
		return usagef("--tls-ca and --tls-cert want a --url of tls://")
	}
	if a.ortLib != "" { // before the worker moves to the folder of its job
		if a.ortLib, err = filepath.Abs(a.ortLib); err != nil {
			return err
		}
	}
	host, err := os.Hostname()
	if err != nil {
		host = "worker"
	}
	name := c.String("name")
	if name == "" {
		name = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	cache, err := a.cacheDir(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o777); err != nil {
		return err
	}
	room, err := os.MkdirTemp(cache, "job-")
	if err != nil {
		return err
	}
	home, err := os.Getwd()
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(room) }() // links to what the cache keeps
	nc, err := nats.Connect(u.String(), append(opts, nats.Name(name))...)
	if err != nil {
		return fmt.Errorf("%s: %w", u.Host, err)
	}
	defer nc.Close()
	a.say("drift: worker %s waits for work of %s", name, u.Host)
	made := 0
	w := &queue.Worker{
		Name: name, Hello: fmt.Sprintf("tier %s, %d threads", kernels.Detect(), a.threads()), Sort: failureOf,
		Files: &queue.Cache{Dir: filepath.Join(cache, "files"), Room: room, Taken: func(f queue.File) { a.say("drift: %s came, %d bytes", f.Path, f.Size) }},
		Open: func(ctx context.Context, j queue.Job) (queue.Doer, error) {
			if err := os.Chdir(room); err != nil {
				return nil, err
			}
			return a.openJob(ctx, j)
		},
		Begun: func(s shard.Spec) {
			if a.json {
				a.emit(map[string]any{"event": "begin", "shard": s.ID})
			}
		},
		Stored: func(s shard.Spec, r *shard.Result, first bool) {
			if a.afterStore != nil {
				a.afterStore()
			}
			if made++; a.json {
				a.emit(map[string]any{"event": "shard", "shard": s.ID, "first": first, "seconds": r.Seconds, "model_seconds": r.Model, "failed": r.Fail != nil})
			}
			again := ""
			if !first {
				again = ", which another had made before"
			}
			a.say("drift: shard %d in %.1f s%s", s.ID, r.Seconds, again)
		},
	}
	_, err = w.Run(ctx, nc)
	if e := os.Chdir(home); e != nil {
		err = errors.Join(err, e)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var m *queue.Mismatch
	switch {
	case errors.Is(err, job.ErrStopped):
		return fmt.Errorf("%w: %d shards are made; the one under way goes to another worker", job.ErrStopped, made)
	case errors.As(err, &m):
		return usagef("%s", m.Reason)
	case err != nil:
		return err
	}
	if a.json {
		a.emit(map[string]any{"event": "done", "shards": made})
	}
	a.say("drift: the job is done; this worker made %d shards", made)
	return nil
}

// openJob opens the line of a job, held to the tier and version of its coordinator.
func (a *app) openJob(ctx context.Context, j queue.Job) (queue.Doer, error) {
	mismatch := func(format string, args ...any) (queue.Doer, error) {
		return nil, &queue.Mismatch{Reason: fmt.Sprintf(format, args...)}
	}
	t, err := kernels.ParseTier(j.Tier)
	switch {
	case j.Version != release:
		return mismatch("the job is of drift %.40s, this is %s", j.Version, release)
	case j.Arch != runtime.GOARCH:
		return mismatch("the job is of a machine of architecture %.40s, this is %s: their last bits differ", j.Arch, runtime.GOARCH)
	case err != nil || !t.Supported():
		return mismatch("the job is on kernel tier %.40s, this machine has %v: a common one is set by --tier in the line of the server", j.Tier, kernels.Tiers())
	}
	line := slices.Clone(j.Args)
	_, verb := leafOf(a.cli(), line)
	if works[verb] == nil {
		return mismatch("the job is a line of %.80q, which is not cut into shards", strings.Join(line, " "))
	}
	n := len(strings.Fields(verb))
	if !slices.ContainsFunc(line, func(w string) bool { return strings.HasPrefix(w, "--tier=") }) {
		line = slices.Insert(line, n, "--tier="+j.Tier)
	}
	d, err := a.openWork(ctx, line)
	if err != nil {
		return nil, fmt.Errorf("opening the job: %w", err)
	}
	return d, nil
}
