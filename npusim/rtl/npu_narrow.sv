// Fits a signed value to OUT_BITS: saturates, wraps, or (trap) wraps and reports. `overflow` is reported in every mode.

module npu_narrow
  import npu_types::*;
#(
    parameter int IN_BITS  = 48,
    parameter int OUT_BITS = 40,
    parameter int MODE     = SATURATE
) (
    input  logic signed [ IN_BITS-1:0] in,
    output logic signed [OUT_BITS-1:0] out,
    output logic                       overflow
);
  // The value fits when all bits from its new sign bit upwards are equal.
  wire [IN_BITS-OUT_BITS:0] top = in[IN_BITS-1:OUT_BITS-1];
  assign overflow = !(&top) && (|top);

  wire sign = in[IN_BITS-1];
  assign out = (MODE == SATURATE && overflow) ? {sign, {OUT_BITS - 1{!sign}}} : in[OUT_BITS-1:0];
endmodule
