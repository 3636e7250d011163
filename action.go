// Role: FailureAction, SuccessAction and StartLimitAction: what the end of one service means for all.
// Runs in: daemon.
// Owns: nothing.
// Uses: wire, unit, deps, supervise, daemon, api.

package main

// endAction is what the end of the service asks for, and the exit code that goes with it (man 5 systemd.unit, FailureAction=).
func endAction(u *unit, r *runRecord) (key string, action unitAction, code int) {
	key, action, code = "FailureAction", u.FailureAction, exitFailed
	switch {
	case r.Sub == failed && r.Result == resultDependency:
		return "", actionNone, 0 // it did not run
	case r.Sub == failed && r.Result == resultStartLimitHit && u.StartLimitAction != actionNone:
		key, action = "StartLimitAction", u.StartLimitAction
	case r.Sub == failed:
	case r.Sub == dead && r.Invocation != "":
		key, action, code = "SuccessAction", u.SuccessAction, exitOK
	default:
		return "", actionNone, 0
	}
	switch x := r.Exit; {
	case x.How == exitExited && x.Status != 0:
		code = x.Status
	case r.Sub == failed && (x.How == exitKilled || x.How == exitDumped):
		code = 128 + x.Status
	}
	return key, action, code
}

// actOnEnd does what the unit asks for, if its service has ended since it had this sub-state and invocation.
func (m *manager) actOnEnd(e *supervised, sub, invocation string) {
	if ended := sub == dead || sub == failed; e.record.Invocation == invocation && (ended || e.record.Sub == sub) {
		return
	}
	m.act(e)
}

func (m *manager) act(e *supervised) {
	u := e.given
	if u == nil || m.killer != nil || m.keeper != nil && m.keeper.until != 0 {
		return
	}
	key, action, code := endAction(u, &e.record)
	if action != actionExit {
		return
	}
	m.say("%q is %s: everything is stopped (%s=%s)", e.name, e.record.Sub, key, action)
	if m.keeper != nil {
		m.endContainer(code)
		return
	}
	m.exitCode = code
	m.stopAll(&asker{verb: verbStop}, byDependency, e.name)
}

// checkActions looks for ends in this boot of the container that no daemon has acted on. What an ordinary daemon did not see is past.
func (m *manager) checkActions() {
	if m.keeper == nil {
		return
	}
	for _, e := range m.services {
		m.act(e)
	}
}
