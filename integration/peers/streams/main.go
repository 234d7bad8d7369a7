// Command streams is a client of the CRI's streaming server, made of Kubernetes' own client library: to the tests it is
// what `kubectl exec`, `attach` and `port-forward` are to users.
//
//	streams run [flags] URL             exec and attach: its streams are the remote ones, its exit code the process'
//	streams forward [flags] URL PORT…   prints the local port of each, and forwards until standard input ends
//
// What goes wrong is said on standard error after `streams: ` and gives the exit code 99.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

func main() {
	var err error
	switch word := append(os.Args, "")[1]; word {
	case "run":
		err = run(os.Args[2:])
	case "forward":
		err = forward(os.Args[2:])
	default:
		err = fmt.Errorf("run or forward, not %q", word)
	}
	var code exec.CodeExitError
	if errors.As(err, &code) {
		os.Exit(code.Code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "streams:", err)
		os.Exit(99)
	}
}

// sizes are the terminal's: the first at once, the next at each SIGUSR1.
type sizes struct {
	left []string
	next chan os.Signal
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	if _, more := <-s.next; !more || len(s.left) == 0 {
		return nil
	}
	var size remotecommand.TerminalSize
	fmt.Sscanf(s.left[0], "%dx%d", &size.Width, &size.Height)
	s.left = s.left[1:]
	return &size
}

func run(args []string) error {
	flags := flag.NewFlagSet("run", flag.ExitOnError)
	transport := flags.String("transport", "websocket", "spdy or websocket")
	protocols := flags.String("protocols", "", "the only ones to offer, with commas between them")
	stdin := flags.Bool("stdin", false, "send standard input")
	tty := flags.Bool("tty", false, "there is a terminal, and no standard error")
	list := flags.String("sizes", "", "sizes of the terminal: 80x24,100x30")
	stdout := flags.Bool("stdout", true, "ask for standard output")
	stderr := flags.Bool("stderr", true, "ask for standard error, unless there is a terminal")
	tlsOff := flags.Bool("insecure", false, "do not verify the server's certificate")
	flags.Parse(args)
	target := flags.Arg(0)
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: *tlsOff}}
	executor, err := executorOf(config, *transport, *protocols, target)
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Tty: *tty}
	if *stdin {
		options.Stdin = os.Stdin
	}
	if *stdout {
		options.Stdout = os.Stdout
	}
	if *stderr && !*tty {
		options.Stderr = os.Stderr
	}
	if *list != "" {
		next := make(chan os.Signal, 8)
		next <- syscall.SIGUSR1
		signal.Notify(next, syscall.SIGUSR1)
		options.TerminalSizeQueue = &sizes{strings.Split(*list, ","), next}
	}
	return executor.StreamWithContext(context.Background(), options)
}

func executorOf(config *rest.Config, transport, protocols, target string) (remotecommand.Executor, error) {
	var offered []string
	if protocols != "" {
		offered = strings.Split(protocols, ",")
	}
	where, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	switch {
	case transport == "websocket" && offered == nil:
		return remotecommand.NewWebSocketExecutor(config, "GET", target)
	case transport == "websocket":
		return remotecommand.NewWebSocketExecutorForProtocols(config, "GET", target, offered...)
	case transport == "spdy" && offered == nil:
		return remotecommand.NewSPDYExecutor(config, "POST", where)
	case transport == "spdy":
		tripper, upgrader, err := spdy.RoundTripperFor(config)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutorForProtocols(tripper, upgrader, "POST", where, offered...)
	}
	return nil, fmt.Errorf("no transport %q", transport)
}

func forward(args []string) error {
	flags := flag.NewFlagSet("forward", flag.ExitOnError)
	transport := flags.String("transport", "websocket", "spdy, or websocket for SPDY in a WebSocket")
	flags.Parse(args)
	where, err := url.Parse(flags.Arg(0))
	if err != nil {
		return err
	}
	dialer, err := dialerOf(*transport, where)
	if err != nil {
		return err
	}
	var ports []string
	for _, port := range flags.Args()[1:] {
		ports = append(ports, "0:"+port)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, ports, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	go func() {
		<-ready
		found, _ := forwarder.GetPorts()
		for _, port := range found {
			fmt.Println(port.Local)
		}
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	return forwarder.ForwardPorts()
}

func dialerOf(transport string, where *url.URL) (httpstream.Dialer, error) {
	config := &rest.Config{}
	switch transport {
	case "websocket":
		return portforward.NewSPDYOverWebsocketDialer(where, config)
	case "spdy":
		tripper, upgrader, err := spdy.RoundTripperFor(config)
		if err != nil {
			return nil, err
		}
		return spdy.NewDialer(upgrader, &http.Client{Transport: tripper}, "POST", where), nil
	}
	return nil, fmt.Errorf("no transport %q", transport)
}
