// Which bytes of the operands a cycle shows: the activation's bytes are the inner loop, the weight's bytes the outer; cycles
// that are left over are idle.

module npu_phases
  import npu_machine::*;
  import npu_types::*;
(
    input  job_t                    job,
    input  logic [PHASE_BITS-1:0]   phase,
    output logic                    last_phase,
    output logic                    active,      // not idle
    output logic                    a_high,
    output logic                    w_wide,
    output logic                    w_high
);
  wire a_wide = job.a_type == I16 || job.a_type == U16;
  assign w_wide = job.b_type == I16;
  wire [PHASE_BITS-1:0] pass_cycles = !a_wide ? PHASE_BITS'(PASS_CYCLES_A8W8)
                                    : !w_wide ? PHASE_BITS'(PASS_CYCLES_A16W8) : PHASE_BITS'(PASS_CYCLES_A16W16);
  assign last_phase = phase == pass_cycles - 1;

  wire two_a_steps = a_wide && A_LANES == 1;
  wire two_w_steps = w_wide && W_LANES == 1;
  wire [PHASE_BITS-1:0] w_step = two_a_steps ? phase >> 1 : phase;
  assign w_high = two_w_steps && w_step == 1;
  assign a_high = two_a_steps && phase[0];
  assign active = w_step <= PHASE_BITS'(two_w_steps);
endmodule
