package consul

import (
	"context"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	serviceName = "spoacme"
	serviceTTL  = 45 * time.Second
)

// health is what the service's check says.
type health struct {
	status string
	text   string
}

// SetHealth sets what Consul's own pages show for this node. Problem is empty when all is well.
func (s *Store) SetHealth(problem string) {
	h := health{api.HealthPassing, "ready"}
	if problem != "" {
		h = health{api.HealthWarning, problem}
	}
	if old := s.health.Swap(&h); old != nil && *old == h {
		return
	}
	select {
	case s.healthChanged <- struct{}{}:
	default:
	}
}

// registerService keeps a service with a check in the local agent, so that Consul's pages show the nodes and their
// state. Nothing depends on it: a token without that right is no failure.
func (s *Store) registerService(ctx context.Context) {
	id := serviceName + "-" + s.cfg.Node
	registered, complained := false, false
	for {
		err := s.reportHealth(ctx, id, &registered)
		if err != nil && ctx.Err() == nil && !complained {
			s.log.Info("this node is not shown as a service in Consul", "node", s.cfg.Node, "err", err)
			complained = true
		}
		t := time.NewTimer(serviceTTL / 3)
		select {
		case <-ctx.Done():
			t.Stop()
			if registered {
				s.deregister(ctx, id)
			}
			return
		case <-t.C:
		case <-s.healthChanged:
			t.Stop()
		}
	}
}

func (s *Store) reportHealth(ctx context.Context, id string, registered *bool) error {
	if !*registered {
		k := s.c.begin(ctx, callTimeout, "register service "+id)
		k.local = true
		err := s.c.api.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
			ID: id, Name: serviceName, Tags: []string{string(s.cfg.Role)},
			Meta: map[string]string{"node": s.cfg.Node, "prefix": s.keys.prefix},
			Check: &api.AgentServiceCheck{
				CheckID: id, Name: "sidecar", TTL: serviceTTL.String(), Status: api.HealthPassing,
				DeregisterCriticalServiceAfter: "72h",
			},
		}, api.ServiceRegisterOpts{}.WithContext(k.ctx))
		if err := k.written(err); err != nil {
			return err
		}
		*registered = true
	}
	h := s.health.Load()
	if h == nil {
		h = &health{api.HealthPassing, "started"}
	}
	k := s.c.begin(ctx, callTimeout, "report the health of service "+id)
	k.local = true
	err := k.written(s.c.api.Agent().UpdateTTLOpts(id, h.text, h.status, k.options(0)))
	if err != nil {
		*registered = false // the agent may have forgotten it
	}
	return err
}

func (s *Store) deregister(ctx context.Context, id string) {
	k := s.c.begin(context.WithoutCancel(ctx), 2*time.Second, "deregister service "+id)
	if err := k.written(s.c.api.Agent().ServiceDeregisterOpts(id, k.options(0))); err != nil {
		s.log.Info("the service stays registered and turns critical", "node", s.cfg.Node, "err", err)
	}
}
