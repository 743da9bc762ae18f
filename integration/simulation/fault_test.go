package simulation

import (
	"errors"
	"time"
)

// lose begins a time in which the process's sessions are not renewed; with Consul they expire there. w.mu is held; so it is below.
func (p *process) lose() {
	if p.w.server != nil || p.sick%2 == 1 {
		return
	}
	p.sick++
	sick, w := p.sick, p.w
	renewed := w.dice.span(ttl/3, p.id+" renewed", sick)
	left := ttl - renewed
	same := func(f func()) func() {
		return func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			if p.sick == sick {
				f()
			}
		}
	}
	time.AfterFunc(left, same(func() {
		p.lapsed = true
		if p.stopped == nil && p.lease != nil {
			p.lease.end(errTookLong)
		}
	}))
	time.AfterFunc(left+w.dice.span(ttl, p.id+" expires", sick), same(func() {
		if w.holder != nil && w.holder.p == p {
			w.free(w.holder, "its session expired")
		}
		if w.acks[p.node.name].p == p {
			w.trace.add("store: the ack of %s is gone", p.id)
			delete(w.acks, p.node.name)
			w.wake()
		}
	}))
}

// regain ends such a time. A process that was stopped for long does not know at once that its lease is over.
func (p *process) regain() {
	if !p.healthy() {
		return
	}
	p.since = time.Now()
	if p.w.server != nil || p.sick%2 == 0 {
		return
	}
	p.sick++
	w, l := p.w, p.lease
	if p.lapsed {
		p.lapsed = false
		if w.acks[p.node.name].p == p {
			delete(w.acks, p.node.name)
		}
		if l != nil {
			time.AfterFunc(w.dice.span(200*time.Millisecond, p.id+" notices", p.sick), func() {
				l.end(errTookLong)
				w.mu.Lock()
				defer w.mu.Unlock()
				w.free(l, "given up")
			})
		}
	}
	w.register(p)
}

// stop is SIGSTOP, proceed SIGCONT.
func (p *process) stop() {
	if p.dead || p.stopped != nil {
		return
	}
	p.w.trace.add("%s is stopped", p.id)
	p.stopped = make(chan struct{})
	p.lose()
}

func (p *process) proceed() {
	if p.stopped == nil {
		return
	}
	p.w.trace.add("%s goes on", p.id)
	close(p.stopped)
	p.stopped = nil
	p.regain()
}

// cutOff takes the store out of a process's reach, mend ends that.
func (p *process) cutOff() {
	if p.dead || p.cut {
		return
	}
	p.w.trace.add("%s does not reach the store", p.id)
	p.cut, p.uncut = true, make(chan struct{})
	p.lose()
}

func (p *process) mend() {
	if !p.cut {
		return
	}
	p.w.trace.add("%s reaches the store", p.id)
	close(p.uncut)
	p.cut, p.uncut = false, nil
	p.regain()
}

// kill is SIGKILL: nothing that the process does from now on has any effect.
func (p *process) kill() {
	if p.dead {
		return
	}
	p.w.trace.add("%s is killed", p.id)
	p.dead = true
	close(p.died)
	p.lose()
	p.cancel()
	if p.lease != nil {
		p.lease.end(errDead)
	}
}

// hit stops or kills a process just when an answer reaches it.
func (p *process) hit(about string, number int) {
	w := p.w
	stop, kill := w.drawn(stops, about+" stops it", number), w.drawn(kills, about+" kills it", number)
	if !stop && !kill {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count.hits >= 8 || p.ending || p.dead || p.stopped != nil {
		return
	}
	w.count.hits++
	d := w.dice.span(time.Minute, about+" for", number)
	if !kill {
		w.faults[stops].Add(1)
		p.stop()
		time.AfterFunc(d, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			p.proceed()
		})
		return
	}
	w.faults[kills].Add(1)
	p.kill()
	go func() {
		<-p.done
		pause(d)
		p.node.follow(p)
	}()
}

// terminate is SIGTERM. It returns when the process has ended; w.mu is not held.
func (p *process) terminate() {
	w := p.w
	w.trace.add("%s is asked to end", p.id)
	p.cancel()
	ended := time.NewTimer(time.Minute)
	defer ended.Stop()
	select {
	case <-p.done:
	case <-ended.C:
		w.mu.Lock()
		hangs := p.healthy()
		w.mu.Unlock()
		if hangs {
			w.problem("%s does not end", p.id)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead {
		return
	}
	if p.healthy() && w.server == nil {
		delete(w.acks, p.node.name)
		w.wake()
	}
	p.lose()
	p.dead = true
	close(p.died)
	if p.lease != nil {
		p.lease.end(errors.New("ended"))
	}
}
