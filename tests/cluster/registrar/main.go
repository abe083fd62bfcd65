// Command registrar stands in for node-driver-registrar, whose releases no module proxy serves: it tells the kubelet of one CSI driver.
//
// It asks the driver for its name, then answers the kubelet's plugin registration API on a socket in the directory that the kubelet
// watches. The socket goes when it ends: by that the kubelet forgets the driver. It takes the flags of the original that the chart gives.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrar answers the kubelet. A refusal ends the process, so that it shows in the pod's state.
type registrar struct {
	registration.UnimplementedRegistrationServer
	plugin  *registration.PluginInfo
	refused chan<- string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return r.plugin, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if status.PluginRegistered {
		log.Printf("the kubelet has registered %s", r.plugin.Name)
	} else {
		select {
		case r.refused <- status.Error:
		default: // The first refusal is under way already.
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// driverName asks the driver, for as long as it may take to come up.
func driverName(socket string, within time.Duration) (string, error) {
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	info, err := csi.NewIdentityClient(connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return "", fmt.Errorf("ask the driver at %s for its name: %w", socket, err)
	}
	return info.Name, nil
}

func run() error {
	driver := flag.String("csi-address", "/run/csi/socket", "the driver's socket, as this process sees it")
	kubelet := flag.String("kubelet-registration-path", "", "the driver's socket, as the kubelet sees it")
	directory := flag.String("plugin-registration-path", "/registration", "what the kubelet watches, as this process sees it")
	within := flag.Duration("timeout", time.Minute, "how long the driver may take to answer")
	flag.Int("v", 0, "taken and ignored, as is http-endpoint")
	flag.String("http-endpoint", "", "taken and ignored")
	flag.Parse()

	name, err := driverName(*driver, *within)
	if err != nil {
		return err
	}
	socket := filepath.Join(*directory, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	refused, ended := make(chan string, 1), make(chan error, 1)
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &registrar{
		plugin:  &registration.PluginInfo{Type: registration.CSIPlugin, Name: name, Endpoint: *kubelet, SupportedVersions: []string{"1.0.0"}},
		refused: refused,
	})
	go func() { ended <- server.Serve(listener) }()
	asked, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	defer server.Stop() // Removes the socket.
	select {
	case <-asked.Done():
		return nil
	case err := <-ended:
		return err
	case why := <-refused:
		return fmt.Errorf("the kubelet refuses %s: %s", name, why)
	}
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
