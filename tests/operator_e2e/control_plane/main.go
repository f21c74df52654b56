// The control plane of Kubernetes as one program for tests: its first argument says which part runs,
// and the other arguments are those of that part. One program needs less time to build than four.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func command(part string) *cobra.Command {
	switch part {
	case "kube-apiserver":
		return apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		return controllers.NewControllerManagerCommand()
	case "kube-scheduler":
		return scheduler.NewSchedulerCommand()
	case "kube-proxy":
		return proxy.NewProxyCommand()
	}
	return nil
}

func main() {
	var part *cobra.Command
	if len(os.Args) > 1 {
		part = command(os.Args[1])
	}
	if part == nil {
		fmt.Fprintf(os.Stderr, "usage: %s kube-apiserver|kube-controller-manager|kube-scheduler|kube-proxy FLAGS\n",
			filepath.Base(os.Args[0]))
		os.Exit(2)
	}
	os.Args = os.Args[1:]
	os.Exit(cli.Run(part))
}
