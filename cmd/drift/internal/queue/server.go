package queue

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Options says how a Server runs. The zero value serves this process only, from memory.
type Options struct {
	Store  string        // folder that keeps queue and results; empty: memory
	Listen string        // address for workers of other processes; empty: no port at all
	Token  string        // that they must show ...
	Keys   []string      // ... or public keys (nkeys) one of which they must hold
	Open   bool          // let in whoever comes; only on the loopback
	TLS    *tls.Config   // nil: plain
	Lost   time.Duration // a worker that is silent for so long is lost; 0 = 30 s
}

func (o *Options) lost() time.Duration {
	if o.Lost <= 0 {
		return 30 * time.Second
	}
	return o.Lost
}

// Server is a NATS server inside this process.
type Server struct {
	o      Options
	s      *server.Server
	own    string // password of this process
	temp   string
	memory bool
}

const (
	ownUser    = "coordinator"
	workerUser = "worker"
)

// may is what workers may do: take shards, store results, ask for files.
var may = server.Permissions{
	Publish: &server.SubjectPermission{Allow: []string{
		"$JS.API.STREAM.INFO." + shards, "$JS.API.CONSUMER.INFO." + shards + "." + consumer, "$JS.API.CONSUMER.MSG.NEXT." + shards + "." + consumer, "$JS.ACK." + shards + "." + consumer + ".>",
		"$JS.API.STREAM.INFO.KV_" + done, "$JS.API.DIRECT.GET.KV_" + done + ".>", "$KV." + done + ".>",
		"$JS.API.STREAM.INFO.KV_" + jobs, "$JS.API.DIRECT.GET.KV_" + jobs + ".>",
		"$JS.API.STREAM.INFO.OBJ_" + results, "$JS.API.DIRECT.GET.OBJ_" + results + ".>", "$O." + results + ".>",
		"$JS.API.STREAM.INFO.OBJ_" + files, "$JS.API.DIRECT.GET.OBJ_" + files + ".>", "$JS.API.CONSUMER.CREATE.OBJ_" + files + ".>", "$JS.API.CONSUMER.DELETE.OBJ_" + files + ".>", "$JS.FC.OBJ_" + files + ".>",
		want, progress, "_INBOX.>",
	}},
	Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>", over}},
}

// Start starts a server.
func Start(o Options) (*Server, error) {
	s := &Server{o: o, own: rand.Text(), memory: o.Store == ""}
	c := server.Options{
		ServerName: "drift", DontListen: o.Listen == "", JetStream: true, StoreDir: o.Store, NoLog: true, NoSigs: true, NoSystemAccount: false,
		Users: []*server.User{{Username: ownUser, Password: s.own}},
	}
	if o.Listen != "" {
		host, port, err := net.SplitHostPort(o.Listen)
		if err == nil {
			c.Port, err = strconv.Atoi(port)
		}
		if err != nil {
			return nil, fmt.Errorf("queue: address %q: want HOST:PORT", o.Listen)
		}
		if c.Host = host; host == "" {
			c.Host = "0.0.0.0"
		}
		l, err := net.Listen("tcp", o.Listen) // the server itself would only try again and again
		if err != nil {
			return nil, fmt.Errorf("queue: %w", err)
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("queue: %w", err)
		}
		if c.Port == 0 {
			c.Port = server.RANDOM_PORT
		}
		switch open := o.Token == "" && len(o.Keys) == 0; {
		case open && !o.Open:
			return nil, errors.New("queue: a server that listens wants a token or keys")
		case open && !Loopback(c.Host):
			return nil, fmt.Errorf("queue: %s is not the loopback: a token or keys are wanted", o.Listen)
		case open:
			c.Users = append(c.Users, &server.User{Username: workerUser, Password: "", Permissions: &may})
			c.NoAuthUser = workerUser
		case o.Token != "":
			c.Users = append(c.Users, &server.User{Username: workerUser, Password: o.Token, Permissions: &may})
		}
		for _, k := range o.Keys {
			c.Nkeys = append(c.Nkeys, &server.NkeyUser{Nkey: k, Permissions: &may})
		}
		if o.TLS != nil {
			c.TLS, c.TLSConfig, c.TLSVerify, c.TLSTimeout = true, o.TLS, o.TLS.ClientCAs != nil, 5
		}
	}
	if s.memory {
		dir, err := os.MkdirTemp("", "drift-queue-")
		if err != nil {
			return nil, err
		}
		s.temp, c.StoreDir = dir, dir
	}
	var err error
	if s.s, err = server.NewServer(&c); err != nil {
		s.Close()
		return nil, fmt.Errorf("queue: %w", err)
	}
	go s.s.Start()
	if !s.s.ReadyForConnections(20 * time.Second) {
		s.Close()
		return nil, errors.New("queue: the server does not start")
	}
	if !s.s.JetStreamEnabled() {
		s.Close()
		return nil, errors.New("queue: the server has no JetStream (is its folder in use by another process?)")
	}
	return s, nil
}

// Loopback tells whether a host is this machine only.
func Loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Addr is the address that workers connect to, empty without a port.
func (s *Server) Addr() string {
	if s.o.Listen == "" {
		return ""
	}
	return s.s.Addr().String()
}

// Connect connects this process.
func (s *Server) Connect() (*nats.Conn, error) {
	nc, err := nats.Connect("", nats.InProcessServer(s.s), nats.UserInfo(ownUser, s.own), nats.Name(ownUser), nats.MaxReconnects(-1))
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return nc, nil
}

// Close stops the server; what it holds in memory is gone.
func (s *Server) Close() {
	if s.s != nil {
		s.s.Shutdown()
		s.s.WaitForShutdown()
	}
	if s.temp != "" {
		_ = os.RemoveAll(s.temp) // a folder of the system's for such files
	}
}

// Clients is the number of connections.
func (s *Server) Clients() int { return s.s.NumClients() }
