// Service is a static program for roots that hold nothing else: it says that it is up, who it is, and when it came up, and ends with SIGTERM.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	at := time.Now().UnixNano()
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	fmt.Printf("up user %d process %d at %d\n", os.Getuid(), os.Getpid(), at)
	<-told
	fmt.Println("down")
}
